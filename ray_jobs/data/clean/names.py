"""Names of people, by named-entity recognition with spaCy: GiNZA for Japanese texts, a small English model for others.

An extra, since it brings spaCy and a dictionary; the models load on first use. What it finds depends on the versions of
the models, so a policy that uses it names them in the dataset's recipe (`versions`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

from ray_jobs.data.clean.finding import Finding, FoldedText
from ray_jobs.errors import DataError

if TYPE_CHECKING:
    from spacy.language import Language  # type: ignore[import-not-found]  # an extra

_MODELS = {"ja": "ja_ginza", "en": "en_core_web_sm"}
_INSTALL = {"ja": "pip install 'kitae[names]'", "en": "python -m spacy download en_core_web_sm"}
_LABELS = frozenset({"Person", "PERSON"})
"""The labels of GiNZA (Sekine's extended hierarchy) and of the English model (OntoNotes)."""
_JAPANESE = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
_PIECE = re.compile(r"[^\n]{1,2000}")
"""What is read at once: the morphological analyser refuses more than 49,149 bytes."""
_NOT_NEEDED = ["parser", "lemmatizer", "attribute_ruler", "compound_splitter", "bunsetu_recognizer"]
"""Parts of the models that recognise no entities."""
_LETTERS = re.compile(r"[^\W\d_]{2}")


def find_people(text: FoldedText) -> Iterator[Finding]:
    """Names in a text. Raises DataError where the model for its language is not installed."""
    for piece in _PIECE.finditer(text.original):
        if _LETTERS.search(piece[0]) is None:
            continue
        for entity in _model("ja" if _JAPANESE.search(piece[0]) else "en")(piece[0]).ents:
            if entity.label_ in _LABELS:
                yield Finding("person", piece.start() + entity.start_char, piece.start() + entity.end_char)


def versions() -> dict[str, str]:
    """The installed models, which decide what is found."""
    found = {}
    for name in _MODELS.values():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def _model(language: str) -> Language:
    name = _MODELS[language]
    try:
        import spacy  # type: ignore[import-not-found]  # an extra

        return spacy.load(name, exclude=_NOT_NEEDED)
    except (ImportError, OSError) as error:
        raise DataError(
            f"data.personal_data.person needs the model {name}, which is not installed: {_INSTALL[language]}, or "
            "leave person out"
        ) from error
