"""Progress lines: content, frequency, and the time left after a restart."""

from __future__ import annotations

import io

import pytest

from ray_jobs.jobs.progress import ProgressState, StageProgress, duration, line, metric


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_line_of_a_training_step() -> None:
    snapshot = ProgressState(42, 120, "steps", {"loss": 2.31, "tokens_per_s": 181.2}, elapsed_s=42 * 70 / 78)
    assert line("train", snapshot) == (
        "train      [########................]  42/120 steps  loss 2.310  181 tok/s  left 1m10s"
    )


def test_bytes_are_scaled_and_an_unknown_total_shows_no_progress() -> None:
    assert "1/2 KiB" in line("upload", ProgressState(1024, 2048, "bytes"))
    assert "3/10 MiB" in line("upload", ProgressState(3 * 2**20, 10 * 2**20, "bytes"))
    assert "[........................]  0/0 rows" in line("clean", ProgressState(0, 0, "rows"))


def test_time_left_counts_only_work_since_the_restart() -> None:
    # 60 steps were done before; 10 more took 20 s, so the last 50 take 100 s.
    assert ProgressState(70, 120, "steps", elapsed_s=20, done_at_first=60).left_s() == 100
    assert ProgressState(60, 120, "steps", elapsed_s=20, done_at_first=60).left_s() is None


def test_a_first_piece_of_much_says_nothing_of_the_time_left() -> None:
    assert ProgressState(2**13, 2**29, "bytes", elapsed_s=600).left_s() is None
    assert ProgressState(2**25, 2**29, "bytes", elapsed_s=600).left_s() == 9000


def test_few_bytes_are_shown_as_such() -> None:
    assert line("base", ProgressState(310, 310, "bytes")).endswith("310/310 B")
    assert line("base", ProgressState(1536, 150_000, "bytes")).endswith("2/146 KiB")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (70, "1m10s"), (3599.7, "1h00m"), (7500, "2h05m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 2.3141592, "loss 2.314"),
        ("rate", 0.0002, "rate 2.0e-04"),
        ("tokens_per_s", 12345.6, "12,346 tok/s"),
        ("images_per_s", 2.5, "2.50 images/s"),
        ("rows", 1200, "rows 1,200"),
        ("best", "step-40", "best step-40"),
        ("doing", "scoring the base", "scoring the base"),
        ("held_out_loss", 0.0, "held out loss 0.000"),
    ],
)
def test_metrics(name: str, value: float | str, text: str) -> None:
    assert metric(name, value) == text


def test_plain_lines_are_at_least_five_seconds_apart_besides_the_last() -> None:
    clock, out = Clock(), io.StringIO()
    with StageProgress("train", out=out, clock=clock) as progress:
        for step in range(13):
            progress.update(step, 12, "steps", loss=3.0 - step / 10)
            clock.now_s += 1
    lines = out.getvalue().splitlines()
    assert [text.split("]")[1].split()[0] for text in lines] == ["0/12", "5/12", "10/12", "12/12"]
    assert lines[1].endswith("left 7s")
    assert lines[-1].endswith("took 13s")


def test_the_next_part_of_a_step_has_a_rate_of_its_own() -> None:
    clock, out = Clock(), io.StringIO()
    with StageProgress("base", out=out, clock=clock) as progress:  # a download, then an upload
        for done, total in ((10, 513), (513, 513), (11, 517), (111, 517)):
            progress.update(done, total, "files")
            clock.now_s += 10
    lines = out.getvalue().splitlines()
    assert lines[2].endswith("11/517 files")
    assert lines[3].endswith("left 41s")


def test_a_step_without_updates_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with StageProgress("evaluate"):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_and_keeps_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: True)
    with StageProgress("train", out=out) as progress:
        progress.update(1, 2, "steps")
        progress.update(2, 2, "steps")
    assert "2/2 steps  took" in out.getvalue().splitlines()[-1]
