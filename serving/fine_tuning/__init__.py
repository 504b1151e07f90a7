"""Fine-tuning jobs as the OpenAI API has them, on Kitae's own jobs.

`request`: what was asked → a job file. `records`: what is written down of it. `lifecycle`: what a job's records amount
to, and what is to be done next; pure. `answers`: what is told of them. `service`: does it.
"""
