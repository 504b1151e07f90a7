"""The base of every section of the job file, and the form of a name."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,46}[a-z0-9])?")

Name = Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]
"""A name that is valid in a store key, a Serve application and a Kubernetes object: lower case, at most 48 long."""
NAME_RULE = "lower-case letters, digits, '.', '_' and '-', at most 48, starting and ending with a letter or digit"


def is_name(text: str) -> bool:
    """True if the text is a valid `Name`."""
    return _NAME.fullmatch(text) is not None


class SpecSection(BaseModel):
    """A part of the job file: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
