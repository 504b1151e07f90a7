"""Reading a job file: YAML, validation, and pydantic's errors as messages with the fix.

The only I/O of this room is `read_yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ray_jobs.errors import SpecError, suggestion
from ray_jobs.spec.job import COMBINATIONS, JobSpec
from ray_jobs.spec.problems import UNKNOWN, Problem, problems

_MOST_PROBLEMS = 100
_SECRET = ("tracking",)
"""Sections in which an address with a password may be in a wrong place."""
_NO_SECTION = "must be an object"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `7:1:2` as a number to the base 60; here it is a text, as in YAML 1.2."""


def _without_base_60(plain: Callable[..., Any]) -> Callable[..., Any]:
    return lambda loader, node: node.value if ":" in node.value else plain(loader, node)


_Loader.add_constructor("tag:yaml.org,2002:int", _without_base_60(yaml.SafeLoader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _without_base_60(yaml.SafeLoader.construct_yaml_float))


def load_spec(path: Path) -> JobSpec:
    """Read a job file. Raises SpecError naming every wrong field, with the nearest right name for an unknown one."""
    document = read_yaml(path, "job file")
    if not isinstance(document, dict):
        raise SpecError(f"{path} holds a {type(document).__name__}, not a mapping of fields; see `kitae schema`")
    return parse_spec(document, source=str(path))


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML document. Raises SpecError if the file is missing or unreadable; `what` names it in the message."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"no {what} at {path}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path} is not readable YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """The value of a YAML document, in which `7:1:2` is a text. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def parse_spec(document: dict[str, Any], *, source: str = "the spec", stored: bool = False) -> JobSpec:
    """Validate a document. A `stored` one may come from another version and have fields that this one does not know.

    Raises SpecError with one detail per problem.
    """
    try:
        return JobSpec.model_validate(document, extra="ignore" if stored else None)
    except ValidationError as error:
        found = _problems(error, document)
        details = [_text(where, message) for where, message in found[:_MOST_PROBLEMS]]
        if len(found) > len(details):
            details.append(f"+{len(found) - len(details)} more")
        raise SpecError(f"{source}: {len(found)} field(s) are wrong", details=details) from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of a job file, for editors."""
    return JobSpec.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}


def _problems(error: ValidationError, document: Any) -> list[Problem]:
    items = error.errors()
    combined = [("", text) for item in items if item["type"] == COMBINATIONS for text in item["ctx"]["problems"]]
    others = [item for item in items if item["type"] != COMBINATIONS]
    return combined + problems(others, document, secret=_SECRET)


def _text(where: str, message: str) -> str:
    *sections, name = where.split(".")
    if message == UNKNOWN:
        elsewhere = [path for path in _paths(JobSpec) if path.rpartition(".")[2] == name]
        hint = f"write {' or '.join(map(_nested, elsewhere))}" if elsewhere else suggestion(name, _fields_at(sections))
        message = f"{message}; {hint}"
    elif message.endswith(_NO_SECTION) and (fields := _fields_at([*sections, name])):
        message = f"{message}, such as {_nested(f'{name}.{fields[0]}')}"
    return f"{where}: {message}" if where else message


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every field below a section, such as `training.lora.rank`."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if (section := _section(field.annotation)) is not None:
            yield from _paths(section, f"{prefix}{name}.")


def _nested(path: str) -> str:
    """A field in YAML: `training: {lora: {rank: …}}`."""
    *sections, name = path.split(".")
    return "".join(f"{section}: {{" for section in sections) + f"{name}: …" + "}" * len(sections)


def _fields_at(location: list[str]) -> list[str]:
    model: type[BaseModel] = JobSpec
    for part in location:
        section = _section(model.model_fields[part].annotation) if part in model.model_fields else None
        if section is None:
            return []
        model = section
    return list(model.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, also an optional one."""
    options = (annotation, *get_args(annotation))
    return next((each for each in options if isinstance(each, type) and issubclass(each, BaseModel)), None)
