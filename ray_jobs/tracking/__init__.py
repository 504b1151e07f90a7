"""A job's metrics in experiment trackers: TensorBoard's event files in the store, MLflow, Weights & Biases.

`job_run` writes one training, `tune` gives Ray Tune's callback for a search. A tracker that fails ends no job.
"""
