"""Datasets: files of rows are read, checked, split, versioned and encoded. Knows no training, no Ray and no HTTP."""

from ray_jobs.data.dataset import Dataset, DatasetFiles, load, prepare

__all__ = ["Dataset", "DatasetFiles", "load", "prepare"]
