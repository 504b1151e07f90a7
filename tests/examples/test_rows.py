"""The examples' rows: questions from FAQ pages, labelled reviews and mails."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest

from examples import faq, labelled
from ray_jobs.tasks import TASKS

PAGE = """
===
FAQ
===

.. _faq-first:

Can I use :setting:`DEBUG` in production?
-----------------------------------------

**Answer:** No, see :doc:`the checklist </howto/checklist>` and
`the manual`_. Set ``DEBUG`` to :class:`~app.False` like this::

    DEBUG = False

    MORE = 1

.. note::

    It leaks memory.

* one item
  continues
* another

.. _the manual: https://example.org

Deeper
~~~~~~

.. code-block:: pycon
    :caption: x

    >>> 1 + 1

Too short?
----------

No.

A section
=========

This belongs to no question.
"""


def test_a_page_becomes_questions_with_plain_answers() -> None:
    (row,) = faq.rows([faq.Page(PAGE, "-")])
    question, answer = (message["content"] for message in row["messages"])
    assert question == "Can I use `DEBUG` in production?"
    assert answer == (
        "No, see the checklist and the manual. Set `DEBUG` to `False` like this:\n\n"
        "```\nDEBUG = False\n\nMORE = 1\n```\n\nIt leaks memory.\n\n"
        "- one item continues\n- another\n\n**Deeper**\n\n```python\n>>> 1 + 1\n```"
    )
    assert TASKS["chat"].check_row(row) == []


def test_a_pickle_that_is_not_a_table_is_refused() -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("ran",))

    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print is not part of a table"):
        labelled.FrameUnpickler(io.BytesIO(pickle.dumps(Evil()))).load()


def test_mail_loses_its_headers_and_its_html() -> None:
    raw = (
        "Received: from a.example\nSubject: =?x?= Buy\n now\nContent-Type: text/html\n\n"
        "<style>p {}</style><p>Dear\x00 friend,<br>hello</p>"
    )
    assert labelled.mail_text(raw) == "=?x?= Buy now\n\nDear friend, hello"


def test_mails_are_labelled_by_their_folders(tmp_path: Path) -> None:
    package = tmp_path / "mails.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name, text in {
            "data/spam-1/00002.b.json": "Subject: b\n\nx",
            "data/easy-ham-1/00001.a.json": "Subject: a\n\nx",
            "package.json": "",
        }.items():
            content = json.dumps({"text": text}).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert list(labelled.mails(package)) == [
        {"text": "a\n\nx", "label": "ham"},
        {"text": "b\n\nx", "label": "spam"},
    ]
