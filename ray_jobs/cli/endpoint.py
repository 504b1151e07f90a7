"""Requests that a command makes to the endpoint, as its operator."""

from __future__ import annotations

import os

from ray_jobs.errors import JobError, ServingError


def resume_job(team: str, api_id: str) -> str:
    """Resume a job of the API, which then launches it and reports it as before. Raises JobError, ServingError."""
    import httpx

    from ray_jobs.deploy import ServeSettings

    key = os.environ.get("KITAE_API_KEY")
    if not key:
        raise JobError(f"{api_id} is a job of the API, which resumes it: set KITAE_API_KEY to the operator's key")
    url = f"{ServeSettings.from_env().url}/fine_tuning/jobs/{api_id}/resume"
    try:
        headers = {"Authorization": f"Bearer {key}", "OpenAI-Project": team}
        answer = httpx.post(url, headers=headers, timeout=60.0)
    except httpx.HTTPError as error:
        raise ServingError(
            f"the endpoint does not answer at {url} ({error}): start it, or set KITAE_ENDPOINT_URL"
        ) from error
    document = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
    if answer.status_code != 200:
        message = (document.get("error") or {}).get("message") or f"status {answer.status_code}"
        raise JobError(f"the endpoint did not resume {api_id}: {message}")
    return f"{api_id}: {document['status']}"
