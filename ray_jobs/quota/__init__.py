"""Quotas of teams: what there are, what changing them would do, and what became of them.

    amounts   quantities as Kubernetes writes them
    pool      nominal quotas, borrowing and lending of teams in a cohort
    simulate  jobs played through the queues of a pool
    history   past jobs, from the store's records
    compare   a trace played against two pools: waiting times, utilisation, cost
    report    hours, idle hours and cost of past jobs
    standing  what a cluster's queues hold now, why something waits, and when it may start
    change    a quota change: checked, as a diff, with what undoes it
    page      plots as one HTML page

All of it is pure but `history`, which reads the store. It knows no client: whoever calls it brings the objects.
"""
