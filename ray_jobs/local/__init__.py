"""The service of one machine: an embedded S3 server and a Ray head, under `.kitae/`."""
