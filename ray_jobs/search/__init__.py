"""Hyperparameter search: the best of many trials, for a fraction of what training all of them would cost.

`space` what is tried, `records` what is kept of it, `sampling` what to try next, `decide` which trial runs and goes on:
all pure. `together` and its two ways of sharing, `adapters` and `features`, train trials in one process. `hosts` puts
them on Ray, `runner` runs a search to its end, and `page` shows it.
"""
