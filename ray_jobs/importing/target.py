"""What the target, a Kitae endpoint, has: bases for fine-tuning, files, whether it offers evals. Only reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_jobs.errors import RemoteError
from ray_jobs.importing.client import ApiClient, Document

_ABSENT = (400, 404, 405, 410)
_FORBIDDEN = 403


@dataclass(frozen=True)
class TargetFacts:
    """Contents of the target before an import."""

    bases: tuple[str, ...] = ()
    """Models that jobs can start from."""
    files: dict[str, Document] = field(default_factory=dict)
    """Files of rows by id."""
    has_evals: bool = False
    is_known: bool = True
    """False: the target was not asked."""
    notes: tuple[str, ...] = ()

    def has_file(self, identifier: str) -> bool:
        return identifier in self.files or not self.is_known


def look(target: ApiClient) -> TargetFacts:
    """Ask the target. Raises RemoteError if it does not answer or refuses the key."""
    models = target.get("/models").get("data")
    bases = [
        str(each.get("id"))
        for each in (models if isinstance(models, list) else ())
        if isinstance(each, dict) and each.get("fine_tunable")
    ]
    files = {
        str(each["id"]): each
        for page in target.pages("/files", {"purpose": "fine-tune", "limit": 100})
        for each in page
        if "id" in each
    }
    notes = [] if bases else ["the target has no base for fine-tuning: `kitae bases add SOURCE` adds one"]
    try:
        target.get("/evals", {"limit": 1})
        has_evals = True
    except RemoteError as error:
        if error.status not in (*_ABSENT, _FORBIDDEN):
            raise
        has_evals = False
        if error.status == _FORBIDDEN:
            notes.append(f"evals stay here: {error.message}")
    return TargetFacts(tuple(bases), files, has_evals, notes=tuple(notes))


def unknown(reason: str) -> TargetFacts:
    """Facts of a target that could not be asked."""
    return TargetFacts(is_known=False, notes=(f"the target is not known: {reason}",))
