"""Each grader on one answer, and the graders that are refused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from ray_jobs.errors import FormulaError, GradingError, ModelGraderRefused, ModelGraderUnclear, UnknownVariable
from ray_jobs.graders.grade import Grade, ModelAnswer, judge, string_check
from ray_jobs.graders.schema import Grader, template_findings, unsupported
from ray_jobs.graders.templates import sample_of

GRADERS: TypeAdapter[Grader] = TypeAdapter(Grader)
ITEM = {"label": "東京", "question": "首都は？"}


@dataclass
class FakeModels:
    """Answers each chat with the next text."""

    answers: list[str] = field(default_factory=list)
    refusal: str | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def chat(self, body: dict[str, Any]) -> ModelAnswer:
        self.bodies.append(body)
        return ModelAnswer(body["model"], self.answers.pop(0), 3, 1, self.refusal)

    async def embed(self, model: str, texts: list[str]) -> tuple[list[list[float]], ModelAnswer]:
        return [[1.0, 0.0], [0.6, 0.8]], ModelAnswer(model, "", 5, 0)


def grade(grader: dict[str, Any], answer: str, models: FakeModels | None = None, **item: Any) -> Grade:
    namespaces = {"item": ITEM | item, "sample": sample_of(answer)}
    return asyncio.run(judge(GRADERS.validate_python({"name": "g"} | grader), namespaces, models or FakeModels()))


def check(operation: str, reference: str = "{{ item.label }}") -> dict[str, Any]:
    texts = {"input": "{{ sample.output_text }}", "reference": reference}
    return {"type": "string_check", "operation": operation, **texts}


LABEL = {
    "type": "label_model",
    "model": "judge",
    "labels": ["good", "bad", "fair"],
    "passing_labels": ["good", "fair"],
    "input": [
        {"role": "developer", "content": "Is it right?"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "{{ item.question }} "}, "{{ sample.output_text }}"],
        },
    ],
}
SCORE = {
    "type": "score_model",
    "model": "judge",
    "range": [1, 5],
    "input": [{"role": "user", "content": "{{ item.label }}"}],
}
SIMILAR = {"type": "text_similarity", "input": "{{ sample.output_text }}", "reference": "{{ item.label }}"}


def test_string_checks() -> None:
    table = {"eq": (True, False, False), "ne": (False, True, True), "like": (True, False, True)}
    for operation, wanted in (table | {"ilike": (True, True, True)}).items():
        found = tuple(string_check(operation, text, "Tokyo") for text in ("Tokyo", "tOKYO!", "Tokyo!"))
        assert found == wanted, operation
    assert string_check("ilike", "STRASSE", "straße")
    assert grade(check("eq"), "東京").passed
    assert grade(check("like"), "東京です").score == 1.0
    assert grade(check("ne"), "東京") == Grade("g", "string_check", 0.0, False)


def test_text_similarity_passes_from_its_threshold_on() -> None:
    grader = SIMILAR | {"evaluation_metric": "rouge_1", "pass_threshold": 2 / 3}
    assert grade(grader, "京都").score == 0.5  # one character of two
    assert not grade(grader, "京都").passed
    assert grade(grader, "東京都").score == pytest.approx(2 * 2 / 5)
    assert grade(grader, "東京都").passed


def test_cosine_compares_the_embeddings_of_a_served_model() -> None:
    found = grade(SIMILAR | {"evaluation_metric": "cosine", "model": "labels"}, "京都")
    assert found.score == pytest.approx(0.6)
    assert found.calls == (ModelAnswer("labels", "", 5, 0),)


def test_a_model_chooses_a_label() -> None:
    models = FakeModels(["fair", "bad", "none of them"])
    assert grade(LABEL, "東京", models).passed
    assert models.bodies[0]["messages"][1] == {"role": "user", "content": "首都は？ 東京"}
    assert models.bodies[0]["structured_outputs"] == {"choice": ["good", "bad", "fair"]}
    failed = grade(LABEL, "京都", models)
    assert (failed.score, failed.passed) == (0.0, False)
    assert failed.sample is not None
    assert failed.sample["output"] == [{"role": "assistant", "content": "bad"}]
    with pytest.raises(ModelGraderUnclear, match="none of the labels"):
        grade(LABEL, "京都", models)
    with pytest.raises(ModelGraderRefused, match="refused"):
        grade(LABEL, "京都", FakeModels(["good"], refusal="no"))


def test_a_model_gives_a_score_in_the_range() -> None:
    for text, score, passed in (("3", 3.0, True), (" 2.5\n", 2.5, False), ("5", 5.0, True)):
        found = grade(SCORE, "x", FakeModels([text]))
        assert (found.score, found.passed) == (score, passed)
    assert grade(SCORE | {"pass_threshold": 2}, "x", FakeModels(["2.5"])).passed
    for text in ("6", "0.5", "-1", "nan", "1e0", "five", "3 of 5", ""):
        with pytest.raises(ModelGraderUnclear, match="no number from 1 to 5"):
            grade(SCORE, "x", FakeModels([text]))
    models = FakeModels(["1"])
    grade(SCORE | {"sampling_params": {"temperature": 0, "max_completions_tokens": 8}}, "x", models)
    assert models.bodies[0]["temperature"] == 0
    assert models.bodies[0]["max_completion_tokens"] == 8


def test_multi_combines_its_graders() -> None:
    graders = {
        "exact": {"name": "e", **check("eq")},
        "near": {"name": "n", **SIMILAR, "evaluation_metric": "fuzzy_match"},
    }
    multi = {"type": "multi", "graders": graders, "calculate_output": "0.25 * exact + 0.75 * near"}
    found = grade(multi, "東京都")
    assert found.parts == {"exact": 0.0, "near": 0.8}
    assert found.score == pytest.approx(0.6)
    assert not grade(multi | {"pass_threshold": 0.61}, "東京都").passed
    one = {"type": "multi", "graders": {"name": "only", **check("eq")}, "calculate_output": "only * 2"}
    assert grade(one, "東京").score == 2.0
    with pytest.raises(FormulaError, match="division by zero"):
        grade(multi | {"calculate_output": "1 / exact"}, "東京都")


def test_an_unknown_variable_has_no_grade() -> None:
    with pytest.raises(UnknownVariable, match=r"item\.answer does not exist"):
        grade(check("eq", "{{ item.answer }}"), "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (LABEL | {"passing_labels": ["great"]}, "'great', which is not one of labels"),
        (LABEL | {"labels": ["good", "good"]}, "a label twice"),
        (SCORE | {"range": [1, 1]}, "the first number must be less"),
        (SCORE | {"range": [0, 1e7]}, "both within 1e6"),
        (SIMILAR | {"evaluation_metric": "cosine"}, "cosine needs `model`"),
        (SIMILAR | {"evaluation_metric": "bleu", "model": "m"}, "model is for cosine only"),
        (
            {"type": "multi", "graders": {"a": {"name": "a", **check("eq")}}, "calculate_output": "b"},
            "'b' is not one of a",
        ),
        (
            {"type": "multi", "graders": {"a": {"name": "a", **check("eq")}}, "calculate_output": "__import__('os')"},
            "calculate_output",
        ),
        ({"type": "multi", "graders": {"min": {"name": "a", **check("eq")}}, "calculate_output": "1"}, "a function of"),
        ({"type": "multi", "graders": {"a b": {"name": "a", **check("eq")}}, "calculate_output": "1"}, "pattern"),
        ({"type": "multi", "graders": {"a": {"type": "multi"}}, "calculate_output": "1"}, "multi"),
        (LABEL | {"input": [{"role": "user", "content": {"type": "input_image", "image_url": "x"}}]}, "input_text"),
        (check("eq") | {"regex": "x"}, "Extra inputs"),
    ],
)
def test_a_grader_that_cannot_work_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GRADERS.validate_python({"name": "g"} | change)


def test_python_and_meteor_are_refused_with_the_reason() -> None:
    python = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1.0"}
    meteor = {"name": "m", **SIMILAR, "evaluation_metric": "meteor"}
    multi = {"type": "multi", "name": "g", "graders": {"a": python, "b": meteor}, "calculate_output": "a + b"}
    findings = dict(unsupported(GRADERS.validate_python(multi), "grader"))
    assert findings.keys() == {"grader.graders.a.type", "grader.graders.b.evaluation_metric"}
    assert "runs no code of its callers" in findings["grader.graders.a.type"]
    assert "English word net" in findings["grader.graders.b.evaluation_metric"]
    assert not list(unsupported(GRADERS.validate_python({"name": "g", **SCORE}), "grader"))
    with pytest.raises(GradingError, match="not supported"):
        grade(python, "x")


def test_variables_that_cannot_exist_are_found_without_an_answer() -> None:
    grader = GRADERS.validate_python({"name": "g", **check("eq", "{{ item.lable }} {{ os.environ }}")})
    assert [where for where, _ in template_findings(grader, "g")] == ["g.reference"]
    label = GRADERS.validate_python({"name": "g", **LABEL})
    findings = list(template_findings(label, "g", item_names=["label"], has_sample=False))
    assert [where for where, _ in findings] == ["g.input[1].content"] * 2
    assert "which item_schema does not have" in findings[0][1]
    assert "include_sample_schema" in findings[1][1]
