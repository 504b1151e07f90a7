"""HTTP in OpenAI's shapes: bodies, paging, ids, errors, retries."""
