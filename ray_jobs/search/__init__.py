"""Hyperparameter search on Ray Tune: the best of many trials. Does not know how a single model trains.

`driver` runs `ray.tune.Tuner` with the `samplers`, `schedulers` and `stoppers` of a job file; `trainables` are its
trials, over the `rungs`. `records` are what is stored: `standing` reads the winner from them, and `progress` and `page`
show it.
"""

from ray_jobs.search.frame import load

__all__ = ["load"]
