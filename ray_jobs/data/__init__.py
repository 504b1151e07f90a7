"""Datasets: files of rows are read, checked, split, versioned and encoded. Knows no training, no Ray and no HTTP."""
