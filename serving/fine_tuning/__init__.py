"""Fine-tuning jobs as OpenAI's API has them, on Kitae's own jobs. Knows no HTTP routes.

`request`: a request → its job's record. `records`: what the API stores of a job. `lifecycle`: status and next action of
a job, decided purely. `responses`: a job in OpenAI's shapes. `service`: carries the actions out.
"""
