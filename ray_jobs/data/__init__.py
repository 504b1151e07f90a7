"""From files of rows to a versioned dataset and its encoded rows: read, checked, split, encoded.

Knows no training, no Ray and no HTTP; a task decides what a row means.
"""

from ray_jobs.data.dataset import Dataset, DatasetFiles, load, prepare

__all__ = ["Dataset", "DatasetFiles", "load", "prepare"]
