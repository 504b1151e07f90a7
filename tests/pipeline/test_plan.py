"""`plan` and `run` agree: what is planned as skipped is skipped, and everything else runs."""

from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from ray_jobs import jobs, pipeline, registry
from ray_jobs.__main__ import cli
from ray_jobs.errors import DataError, GateError, JobPaused, MachineError, RegistryError, SpecError
from ray_jobs.pipeline.outputs import EncodedRows
from ray_jobs.spec import JobSpec
from ray_jobs.storage import Workspace
from ray_jobs.tasks.base import PromptSetting
from tests.builders import make_spec
from tests.models.tiny_models import save_causal
from tests.pipeline.builders import FakeStages, job_file, stage_keys, write_rows
from tests.tasks.chat.families import templates, tokenizer_of
from tests.tasks.chat.shapes import answer, user

ALL = ["dataset", "base", "encode", "train", "evaluate", "parity", "register", "deploy"]
TWO_BASES = {"trials": 2, "space": {"base_model": ["small", "large"]}}


def planned(store: Workspace, spec: JobSpec) -> list[tuple[str, str]]:
    """(stage, the action without its details) of each stage."""
    found = pipeline.plan(store, spec).stages
    return [(stage.name, stage.action.split(":")[0].split(" (")[0]) for stage in found]


def will_run(store: Workspace, spec: JobSpec) -> list[str]:
    return [name for name, action in planned(store, spec) if action == "will run"]


def skipped(store: Workspace, spec: JobSpec) -> list[str]:
    return [name for name, action in planned(store, spec) if action == "skipped"]


def test_a_new_job_runs_every_stage(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store)
    assert will_run(store, spec) == ALL == stages.rerun(store, spec)


def test_a_missing_tracker_is_an_error_before_any_stage(
    stages: FakeStages, store: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.tracking.packages.find_spec", lambda _: None)
    spec = job_file(store, tracking={"wandb": {"project": "p"}})
    before = {info.key for info in store.list()}
    with pytest.raises(MachineError, match="make setup"):
        pipeline.plan(store, spec)
    assert {info.key for info in store.list()} == before
    with pytest.raises(MachineError, match="make setup"):
        pipeline.run(store, spec)
    record = jobs.load(store, spec.job_id)
    assert record.status == "failed"
    assert "make setup" in (record.error or "")
    assert stages.ran == []


def test_planning_writes_nothing(stages: FakeStages, store: Workspace) -> None:
    before = [info.key for info in store.list("")]
    pipeline.plan(store, job_file(store))
    assert [info.key for info in store.list("")] == before
    assert stages.ran == []


def test_a_finished_job_only_deploys_again(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store)
    pipeline.run(store, spec)
    report = pipeline.plan(store, spec)
    assert skipped(store, spec) == ALL[:-1]
    assert will_run(store, spec) == ["deploy"] == stages.rerun(store, spec)
    done = re.fullmatch(r"skipped: done in \d s by attempt 1", report.stages[0].action)
    assert done is not None
    text = report.as_text()
    assert text.startswith("name: greeter\n")
    assert f"\njob {spec.job_id}\n  dataset    {done[0]}\n" in text


def test_a_stopped_job_resumes_after_its_last_finished_stage(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store)
    stages.during["train"] = lambda: jobs.request_pause(store, spec.job_id)
    with pytest.raises(JobPaused):
        pipeline.run(store, spec)
    stages.during.clear()
    assert skipped(store, spec) == ["dataset", "base", "encode"]
    assert will_run(store, spec) == ALL[3:] == stages.rerun(store, spec)


def test_changed_rows_run_everything_but_the_base_again(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store)
    pipeline.run(store, spec)
    write_rows(store, 50)
    assert skipped(store, spec) == ["base"]
    again = [name for name in ALL if name != "base"]
    assert will_run(store, spec) == again == stages.rerun(store, spec)


def test_an_evaluation_under_other_settings_runs_again_with_what_depends_on_it(
    stages: FakeStages, store: Workspace
) -> None:
    """As after a version whose defaults differ: the job's id is the same, the stage's inputs are not."""
    spec = job_file(store)
    pipeline.run(store, spec)
    (record,) = [record for record in jobs.stages(store, spec.job_id) if record.name == "evaluate"]
    (key,) = stage_keys(store, spec.job_id, "evaluate")
    store.delete(key)
    job = jobs.start_attempt(store, spec)
    job.finish_stage("evaluate", record.inputs | {"evaluation": {}}, record.outputs, 1.0)
    assert skipped(store, spec) == ALL[:4]
    assert will_run(store, spec) == ALL[4:]
    assert stages.rerun(store, spec) == ["evaluate", "deploy"]  # the same candidate: parity and register stand


def test_other_workers_run_nothing_again(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store)
    pipeline.run(store, spec)
    assert will_run(store, job_file(store, compute={"workers": 3})) == ["deploy"]


@pytest.mark.parametrize(("retrain", "train"), [(False, []), (True, ["train"])])
def test_a_finished_search_over_two_bases_is_skipped(
    stages: FakeStages, store: Workspace, retrain: bool, train: list[str]
) -> None:
    spec = job_file(store, search=TWO_BASES | {"retrain": retrain})
    materials = ["dataset", "base", "encode", "base", "encode"]
    assert will_run(store, spec) == [*materials, "search", *train, *ALL[4:]]
    pipeline.run(store, spec)
    assert skipped(store, spec) == [*materials, "search", *train, *ALL[4:-1]]
    assert will_run(store, spec) == ["deploy"] == stages.rerun(store, spec)


def test_a_search_is_described_and_each_base_is_named(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store, search=TWO_BASES)
    found = pipeline.plan(store, spec).stages
    assert [stage.action for stage in found if stage.name == "base"] == ["will run (small)", "will run (large)"]
    (search,) = [stage.action for stage in found if stage.name == "search"]
    assert search == "will run: asha with tpe, at most 2 trials over base_model small, large"


def test_one_changed_base_of_two_runs_again_with_its_rows(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store, search=TWO_BASES)
    pipeline.run(store, spec)
    bases = stage_keys(store, spec.job_id, "base")
    (key,) = [key for key in bases if store.get_json(key)["inputs"]["source"] == "large"]
    store.delete(key)
    found = [stage.action for stage in pipeline.plan(store, spec).stages]
    assert [action.split(":")[0] for action in found[:6]] == [
        "skipped",
        "skipped",
        "skipped",
        "will run (large)",
        "will run (large)",
        "will run",
    ]


def test_parity_is_not_needed_where_no_engine_serves(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store, task="text_classification", data={"train": store.uri("files/labels.jsonl")})
    lines = [f'{{"text": "{i} {label}", "label": "{label}"}}' for i in range(20) for label in "ab"]
    store.put("files/labels.jsonl", "\n".join(lines).encode())
    parity = ("parity", "not needed: no engine serves this task")
    assert parity in [(stage.name, stage.action) for stage in pipeline.plan(store, spec).stages]
    without = [name for name in ALL if name != "parity"]
    assert will_run(store, spec) == without == stages.rerun(store, spec)
    assert skipped(store, spec) == without[:-1]


def test_deploy_off(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store, serving={"deploy": False})
    report = pipeline.plan(store, spec)
    assert (report.stages[-1].name, report.stages[-1].action) == ("deploy", "off (serving.deploy)")
    result = pipeline.run(store, spec)
    assert (result.endpoint, "endpoint    not deployed" in result.as_text()) == (None, True)
    assert will_run(store, spec) == [] == stages.rerun(store, spec)


def test_stages_after_a_gate_that_fails_are_not_reached(stages: FakeStages, store: Workspace) -> None:
    spec = job_file(store)
    stages.tuned_loss = 3.0
    with pytest.raises(GateError):
        pipeline.run(store, spec)
    assert skipped(store, spec) == ALL[:5]
    left = [stage.action for stage in pipeline.plan(store, spec).stages[5:]]
    assert len(left) == 3
    assert all(action.startswith("not reached: the tuned model's test loss 3.0000") for action in left)


@pytest.mark.usefixtures("stages")
def test_a_name_of_another_team_is_refused_before_anything_is_written(store: Workspace) -> None:
    spec = job_file(store)
    blue = Workspace(store, "blue")
    registry.claim_name(blue, spec.name)
    before = [info.key for info in store.list()]
    for refused in (pipeline.plan, pipeline.run):
        with pytest.raises(RegistryError, match="belongs to team 'blue', not to 'default'"):
            refused(store, spec)
    assert [info.key for info in store.list()] == before
    pipeline.run(blue, spec.model_copy(update={"team": "blue"}))


@pytest.mark.usefixtures("stages")
def test_missing_rows_and_missing_bases_are_reported_together(store: Workspace) -> None:
    fields: dict[str, Any] = {"data": {"train": store.uri("files/none.jsonl")}, "base_model": "./no-such-model"}
    with pytest.raises(DataError) as error:
        pipeline.plan(store, job_file(store, **fields))
    rows, base = error.value.details
    assert "files/none.jsonl" in rows
    assert "./no-such-model" in base


@pytest.mark.usefixtures("store_environment")
def test_the_command_prints_the_plan(stages: FakeStages, store: Workspace, tmp_path: Path) -> None:
    spec = job_file(store)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    shown = CliRunner().invoke(cli, ["plan", str(path)])
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert lines[0] == "name: greeter"
    blank = lines.index("", lines.index(f"job {spec.job_id}"))
    stages_shown, advice = lines[lines.index(f"job {spec.job_id}") + 1 : blank], lines[blank + 1 :]
    assert advice[0] == "what to fix first in the rows"
    assert "recommended: Few training rows" in advice[1]
    assert [line.split(":")[0].split() for line in stages_shown] == [[name, "will", "run"] for name in ALL]
    assert "rows to train on" in stages_shown[0]
    assert stages.ran == []


@pytest.mark.usefixtures("stages")
def test_a_job_file_of_another_team_is_refused(store: Workspace) -> None:
    spec = job_file(store).model_copy(update={"team": "blue"})
    for refused in (pipeline.plan, pipeline.run):
        with pytest.raises(SpecError, match="team: blue, and this is the workspace of team 'default'"):
            refused(store, spec)
    pipeline.plan(Workspace(store, "blue"), spec)


def test_a_plan_counts_rows_that_do_not_fit_the_base(store: Workspace, tmp_path: Path) -> None:
    rows = [{"messages": [user(f"Question {i}?"), answer(f"Answer {i}. " * (1 if i else 100))]} for i in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_causal(tmp_path / "base")
    for policy, said in (
        ("error", "required: 1 row is longer"),
        ("truncate", "1 row loses a part"),
        ("drop", "1 row is left"),
    ):
        data = {"train": str(path), "max_tokens": 100, "too_long": policy}
        found = pipeline.plan(store, make_spec(base_model=str(tmp_path / "base"), data=data)).advice
        assert any(said in each for each in found), found


def test_a_plan_says_what_the_encoded_rows_are(
    stages: FakeStages, store: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = job_file(store)
    pipeline.run(store, spec)
    (quiet,) = [stage.action for stage in pipeline.plan(store, spec).stages if stage.name == "encode"]
    assert "examples" not in quiet
    assert ";" not in quiet
    prompts = PromptSetting(switches={"enable_thinking": True}, today=date(2026, 7, 26))
    rewritten = EncodedRows(train_rows=36, train_examples=90, test_kept=(), key="k", labels=(), prompts=prompts)
    monkeypatch.setattr("ray_jobs.pipeline.stage_work.encode", lambda *_, **__: rewritten)
    other = job_file(store, data={"train": spec.data.train, "max_tokens": 77})
    pipeline.run(store, other)
    text = pipeline.plan(store, other).as_text()
    assert "36 rows are 90 examples, prompts have enable_thinking: true, the template writes today's date" in text


def test_a_plan_counts_the_first_rows_before_they_are_encoded(store: Workspace, tmp_path: Path) -> None:
    directory = tmp_path / "base"
    tokenizer_of("nemotron_3_nano", templates()["nemotron_3_nano"], save_causal(directory))
    conversation = [user("Hello"), answer("Hi."), user(), answer()]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": [user(f"{i}"), *conversation]}) + "\n" for i in range(12)))
    spec = make_spec(base_model=str(directory), data={"train": str(rows)})
    before = [info.key for info in store.list("")]
    (action,) = [stage.action for stage in pipeline.plan(store, spec).stages if stage.name == "encode"]
    assert action.startswith("will run: of the first 12 rows: ")
    assert "prompts have enable_thinking: false" in action
    assert [info.key for info in store.list("")] == before


@pytest.mark.usefixtures("stages")
def test_a_plan_reads_the_rows_and_refuses_wrong_ones(store: Workspace, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "ab"[i % 2], "id": i} for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    spec = job_file(store, task="text_classification", data={"train": str(path)})
    (action,) = [stage.action for stage in pipeline.plan(store, spec).stages if stage.name == "dataset"]
    assert re.search(
        r"will run: \d+ rows to train on, \d+ to validate, \d+ to test; labels [ab] \d\d%, [ab] \d\d%", action
    )
    assert "not used: the column(s) 'id'" in action
    path.write_text('{"text": "", "label": "a"}\n{"text": "t"}')
    with pytest.raises(DataError) as refused:
        pipeline.plan(store, spec)
    assert len(refused.value.details) == 2
    assert not store.list_dirs("datasets/")
