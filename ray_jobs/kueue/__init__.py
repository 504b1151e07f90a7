"""Kueue understood once: totals, quota, the reason for waiting, the estimated start. Knows no launcher, no store. Pure.

objects         fields of Kueue's objects (v1beta2)
workload        what a Workload requests and holds, its state, its place in the order of admission
pool            quotas of the teams in a cohort
queues          a cluster's ClusterQueues, LocalQueues and Cohorts; the same as a pool
cohort_usage    what a team uses and has available in a cohort: Kueue's arithmetic
capacity        each quota of a ClusterQueue with what is available; requests that no quota could admit
waiting         why a Workload is not admitted
simulate        admission as a discrete-event simulation
start_estimate  when waiting Workloads are likely to start
"""
