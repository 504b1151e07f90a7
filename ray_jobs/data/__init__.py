"""Rows in, a versioned dataset out: `ingest` reads and checks, `split` decides sides, `dataset` stores."""

from ray_jobs.data.dataset import Dataset, DatasetFiles, load, prepare

__all__ = ["Dataset", "DatasetFiles", "load", "prepare"]
