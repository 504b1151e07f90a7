"""Hyperparameter search: the best of many trials. Does not know how a single model trains.

Pure: `space` (what is searched), `records` (what is stored), `sampling` (the next values), `decide` (which trial runs).
`trial_group` trains trials in one process and shares their passes by `adapters` or `features`; `shared_trainer` is that
process, `executors` puts it on Ray, `runner` runs a search to its end, and `page` shows it.
"""
