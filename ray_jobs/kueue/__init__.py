"""Kueue's arithmetic: quota, usage, reasons for waiting, simulation, the estimate of a start. Knows no launcher."""
