"""Quotas of teams: what they use, what another quota would change, what past jobs cost. Knows no client and no CLI.

    amounts     quantities in Kubernetes' notation
    quota_file  a quota file and `--set` settings, applied to a pool
    status      present quotas, usage and waiting Workloads
    change      a quota change: checks, diff, patch, undo
    job_trace   past jobs, from the store's records
    compare     a job trace replayed in two pools: waiting times, utilisation, cost
    report      hours, idle hours and cost of past jobs
    tables      results as rows of text
    page        results as an HTML page

Everything is pure except `job_trace`, which reads the store. The arithmetic of Kueue is in `ray_jobs.kueue`.
"""
