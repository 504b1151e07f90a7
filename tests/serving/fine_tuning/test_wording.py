"""What a caller of the API reads of a runner's messages."""

from __future__ import annotations

import pytest

from serving.fine_tuning.wording import for_callers


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("step 10", "step 10"),
        (
            "the Ray cluster was lost; once it runs again, `kitae resume ftjob-1-2` resumes from the last checkpoint",
            "the Ray cluster was lost; once it runs again, `POST /v1/fine_tuning/jobs/ftjob-1/resume` resumes from the "
            "last checkpoint",
        ),
        ("the limit is 8 (`kitae bases engine`)", "the limit is 8"),
        ("a worker on 10.12.0.7:6379 died", "a worker on a machine died"),
        ("node ip-10-0-0-7 and head.kitae.svc.cluster.local are gone", "node a machine and a machine are gone"),
        (f"node {'ab' * 28} died", "node … died"),
        ("OSError: /home/ray/session_latest/logs/x.log is full", "OSError: a file is full"),
        ("no rows at s3://models/kitae/files/a: upload", "no rows at the store: upload"),
        ("`kitae status` lists the jobs", "the operator lists the jobs"),
        ("use /v1/classify; loss 3.2/4.1, 5 of 10", "use /v1/classify; loss 3.2/4.1, 5 of 10"),
    ],
)
def test_a_message_has_no_commands_files_or_machines(message: str, shown: str) -> None:
    assert for_callers(message, "ftjob-1") == shown
