"""The base of every section of the job file, and the names it uses."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,46}[a-z0-9])?$")]
"""A name that is valid in a store key, a Serve application and a Kubernetes object: lower case, at most 48 long."""


class SpecSection(BaseModel):
    """A part of the job file: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
