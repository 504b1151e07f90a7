"""HTTP in OpenAI's shapes: bodies, errors, ids, pages, retries and the background loop. Knows no store and no model."""
