"""The graders of OpenAI's API: their fields, types and bounds, and which real ones are not supported.

`model` of `text_similarity` and `pass_threshold` of `multi` are Kitae's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ray_jobs.errors import GradingError, suggestion
from ray_jobs.graders import formula, templates
from ray_jobs.graders.formula import parse_formula

MAX_GRADERS = 16
_Template = Annotated[str, Field(max_length=65_536)]
_Name = Annotated[str, Field(min_length=1, max_length=256)]
_Label = Annotated[str, Field(min_length=1, max_length=256)]
_Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]

UNSUPPORTED_METRICS = {
    "meteor": "METEOR compares stems and synonyms with an English word net, which other languages lack: use gleu, "
    "rouge_l or fuzzy_match"
}
NO_PYTHON = (
    "the service runs no code of its callers: use string_check, text_similarity, score_model, label_model or multi, "
    "or grade the output items in your own process"
)


class _GraderPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GraderText(_GraderPart):
    """A text of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: _Template


class GraderMessage(_GraderPart):
    """A message with templates. Models read text: images and audio are refused."""

    role: Literal["system", "developer", "user", "assistant"]
    content: _Template | GraderText | Annotated[list[_Template | GraderText], Field(min_length=1, max_length=64)]
    type: Literal["message"] = "message"

    @property
    def text(self) -> str:
        """Its template."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return "".join(part if isinstance(part, str) else part.text for part in parts)


Messages = Annotated[list[GraderMessage], Field(min_length=1, max_length=64)]


class StringCheckGrader(_GraderPart):
    """1 if the texts compare as wanted, else 0."""

    type: Literal["string_check"]
    name: _Name
    input: _Template
    reference: _Template
    operation: Literal["eq", "ne", "like", "ilike"]
    """`like`: the input contains the reference; `ilike`: without regard to case."""


class TextSimilarityGrader(_GraderPart):
    """Similarity of two texts, from 0 to 1."""

    type: Literal["text_similarity"]
    name: _Name
    input: _Template
    reference: _Template
    evaluation_metric: Literal[
        "fuzzy_match", "bleu", "gleu", "meteor", "cosine", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5",
        "rouge_l",
    ]  # fmt: skip
    pass_threshold: _Number | None = None
    """Least score with which an item passes. Required in an eval."""
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """`cosine` only: the served model whose `/v1/embeddings` are compared."""

    @model_validator(mode="after")
    def _model_fits(self) -> TextSimilarityGrader:
        if self.evaluation_metric == "cosine" and self.model is None:
            raise ValueError("cosine needs `model`: the name of a served model that has embeddings")
        if self.evaluation_metric != "cosine" and self.model is not None:
            raise ValueError(f"model is for cosine only, and the metric is {self.evaluation_metric}: leave it out")
        return self


class LabelModelGrader(_GraderPart):
    """1 if a model chooses a passing label, else 0."""

    type: Literal["label_model"]
    name: _Name
    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: Messages
    labels: Annotated[list[_Label], Field(min_length=1, max_length=100)]
    passing_labels: Annotated[list[_Label], Field(min_length=1, max_length=100)]

    @model_validator(mode="after")
    def _labels_fit(self) -> LabelModelGrader:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels has a label twice: name each once")
        if unknown := [label for label in self.passing_labels if label not in self.labels]:
            raise ValueError(f"passing_labels has {unknown[0]!r}, which is not one of labels")
        return self


class GraderSampling(_GraderPart):
    """How the grader's model answers."""

    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1, strict=True)] | None = None
    max_completions_tokens: Annotated[int, Field(ge=1, le=2**20, strict=True)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None

    def fields(self) -> dict[str, Any]:
        """Return them as fields of a chat completion."""
        given = self.model_dump(exclude_none=True)
        limit = given.pop("max_completions_tokens", None)
        return given | ({} if limit is None else {"max_completion_tokens": limit})


class ScoreModelGrader(_GraderPart):
    """A number that a model chooses within a range."""

    type: Literal["score_model"]
    name: _Name
    model: Annotated[str, Field(min_length=1, max_length=512)]
    input: Messages
    range: Annotated[list[_Number], Field(min_length=2, max_length=2)] = [0.0, 1.0]
    pass_threshold: _Number | None = None
    """Least score with which an item passes. None: the middle of the range."""
    sampling_params: GraderSampling | None = None

    @model_validator(mode="after")
    def _range_ascends(self) -> ScoreModelGrader:
        low, high = self.range
        if not low < high or not math.isfinite(high - low) or max(abs(low), abs(high)) >= 1e6:
            raise ValueError(f"range is {self.range}; the first number must be less than the second, both within 1e6")
        return self


class PythonGrader(_GraderPart):
    """Known, and refused."""

    type: Literal["python"]
    name: _Name
    source: Annotated[str, Field(max_length=262_144)]
    image_tag: Annotated[str, Field(max_length=256)] | None = None
    pass_threshold: _Number | None = None


SingleGrader = Annotated[
    StringCheckGrader | TextSimilarityGrader | LabelModelGrader | ScoreModelGrader | PythonGrader,
    Field(discriminator="type"),
]
_Key = Annotated[str, Field(pattern=f"^{formula.NAME}$")]


class MultiGrader(_GraderPart):
    """A formula over the scores of other graders."""

    type: Literal["multi"]
    name: _Name
    graders: Annotated[dict[_Key, SingleGrader], Field(min_length=1, max_length=MAX_GRADERS)]
    """By the name that the formula uses. One grader without a name is known by its own."""
    calculate_output: Annotated[str, Field(min_length=1, max_length=formula.MAX_LENGTH)]
    pass_threshold: _Number | None = None
    """Least score with which an item passes. Required in an eval."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        graders = given.get("graders") if isinstance(given, dict) else None
        if isinstance(graders, dict) and isinstance(graders.get("type"), str):  # the official client's type
            return given | {"graders": {str(graders.get("name")): graders}}
        return given

    @model_validator(mode="after")
    def _formula_parses(self) -> MultiGrader:
        if taken := sorted(formula.FUNCTIONS & self.graders.keys()):
            raise ValueError(f"graders has {taken[0]!r}, which is a function of calculate_output: use another name")
        try:
            parse_formula(self.calculate_output, self.graders)
        except GradingError as error:
            raise ValueError(error.message) from error
        return self


Grader = Annotated[
    StringCheckGrader | TextSimilarityGrader | LabelModelGrader | ScoreModelGrader | MultiGrader | PythonGrader,
    Field(discriminator="type"),
]
Finding = tuple[str, str]
"""(field, message)."""


def unsupported(grader: Grader, where: str) -> Iterator[Finding]:
    """Yield the graders that Kitae does not have, with what to use instead."""
    if isinstance(grader, PythonGrader):
        yield f"{where}.type", f"python graders are not supported: {NO_PYTHON}"
    if isinstance(grader, TextSimilarityGrader) and grader.evaluation_metric in UNSUPPORTED_METRICS:
        metric = grader.evaluation_metric
        yield f"{where}.evaluation_metric", f"{metric} is not supported: {UNSUPPORTED_METRICS[metric]}"
    if isinstance(grader, MultiGrader):
        for key, part in grader.graders.items():
            yield from unsupported(part, f"{where}.graders.{key}")


def template_findings(
    grader: Grader, where: str, *, item_names: list[str] | None = None, has_sample: bool = True
) -> Iterator[Finding]:
    """Yield the variables that cannot exist. `item_names`: the names that an item has. None: any."""
    for place, template in templates_of(grader, where):
        try:
            found = templates.variables(template)
        except GradingError as error:
            yield place, error.message
            continue
        for path in found:
            if path[0] == "sample" and not has_sample:
                message = "but the eval has no samples: set data_source_config.include_sample_schema to true"
                yield place, f"uses {templates.path_text(path)}, {message}"
            if path[0] == "item" and item_names is not None and path[1] not in item_names:
                hint = suggestion(str(path[1])[:64], item_names)
                yield place, f"uses {templates.path_text(path)[:80]}, which item_schema does not have; {hint}"


def templates_of(grader: Grader, where: str) -> Iterator[tuple[str, str]]:
    """Yield each template of a grader with its field."""
    if isinstance(grader, StringCheckGrader | TextSimilarityGrader):
        yield f"{where}.input", grader.input
        yield f"{where}.reference", grader.reference
    if isinstance(grader, LabelModelGrader | ScoreModelGrader):
        for place, message in enumerate(grader.input):
            yield f"{where}.input[{place}].content", message.text
    if isinstance(grader, MultiGrader):
        for key, part in grader.graders.items():
            yield from templates_of(part, f"{where}.graders.{key}")


def models_of(grader: Grader) -> Iterator[tuple[str, bool]]:
    """Yield each model that a grader calls, and whether for embeddings."""
    if isinstance(grader, LabelModelGrader | ScoreModelGrader):
        yield grader.model, False
    if isinstance(grader, TextSimilarityGrader) and grader.model is not None:
        yield grader.model, True
    if isinstance(grader, MultiGrader):
        for part in grader.graders.values():
            yield from models_of(part)
