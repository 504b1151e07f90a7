"""Kubernetes: the API client, informers, kinds, quantities and the cluster's settings. Knows no job."""
