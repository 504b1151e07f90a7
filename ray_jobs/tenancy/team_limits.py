"""Limits of what a team may keep and have open at once. Knows no counts: the rooms that own the objects count them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from ray_jobs.spec import Name


class TeamLimits(BaseModel):
    """The limits of one team."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    files: int = Field(10_000, ge=1)
    """Files and unfinished uploads, results of jobs included."""
    file_bytes: int = Field(2**40, ge=1)
    """Bytes of all files and parts of uploads."""
    open_jobs: int = Field(1_000, ge=1)
    """Fine-tuning jobs that have not ended, over all keys of the team."""
    stored_answers: int = Field(100_000, ge=1)
    """Stored chat completions and responses."""
    stored_answer_bytes: int = Field(10 * 2**30, ge=1)
    """Bytes of them."""
    open_batches: int = Field(50, ge=1)
    """Batches that have not ended."""
    batch_lines: int = Field(250_000, ge=1)
    """Lines of all batches that have not ended."""


class TeamQuotas(TeamLimits):
    """The limits of every team: those of `teams`, else these."""

    teams: Mapping[Name, dict[str, int]] = Field(default_factory=dict)
    """By team: the limits that differ."""

    def of(self, team: str) -> TeamLimits:
        """The limits of a team. Raises ValidationError for a limit that does not exist or is less than 1."""
        own = self.model_dump(exclude={"teams"}) | dict(self.teams.get(team, {}))
        return TeamLimits.model_validate(own)
