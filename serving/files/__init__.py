"""Files: uploaded rows, stored and validated. Knows no HTTP beyond its errors, and no job."""
