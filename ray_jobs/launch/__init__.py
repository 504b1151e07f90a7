"""Launchers: runners as Ray jobs or as RayJobs on Kubernetes, behind one interface. Knows no HTTP API and no store."""
