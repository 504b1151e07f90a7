"""Stored training inputs: the stored names stay, in a document of its own and inside a stage's output."""

from __future__ import annotations

from pydantic import BaseModel

from ray_jobs.training.inputs import TrainInputs, TrainUntil
from tests.training.harness import make_spec


class StageOutput(BaseModel):
    inputs: TrainInputs


def make_inputs(until: TrainUntil | None) -> TrainInputs:
    return TrainInputs(spec=make_spec(), labels=(), encoded_key="e", base_key="b", checkpoints="c", until=until)


def test_the_stored_names_are_written_and_read() -> None:
    inputs = make_inputs(TrainUntil(stop_at_step=9, resume_from="k"))
    for document in (
        inputs.model_dump(mode="json"),
        StageOutput(inputs=inputs).model_dump(mode="json")["inputs"],
    ):
        assert document["stretch"] == {"rung": 9, "source": "k"}
        assert "until" not in document
        assert TrainInputs.model_validate(document) == inputs
    assert TrainInputs.model_validate_json(inputs.model_dump_json()) == inputs


def test_inputs_without_a_stop_are_stored_as_before() -> None:
    document = make_inputs(None).model_dump(mode="json")
    assert document["stretch"] is None
    del document["stretch"]
    assert TrainInputs.model_validate(document).until is None
