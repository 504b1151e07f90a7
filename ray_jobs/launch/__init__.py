"""Launchers: runners of jobs as Ray jobs or as RayJobs on Kubernetes, behind one interface."""
