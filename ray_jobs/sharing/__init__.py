"""Trials of a search that share a process: one base model or its cached features, several trials in each forward pass.

`trial_group` trains them, by `adapters` or `features`; `shared_trainer` is the process. Knows no search and no Ray.
"""
