"""Kubernetes: the client, what the endpoint is told of the cluster, and runners as RayJobs in Kueue's queues."""
