"""Evals as OpenAI's API has them: graders over the rows of a file, answered by a served model. Knows no HTTP routes.

`service`: what the routes call. `records`: what the store keeps. `source`: a run's rows. `runner`: works on open runs.
`model_calls`: requests to the endpoint's own routes. `item_grading`: a row → its output item.
"""
