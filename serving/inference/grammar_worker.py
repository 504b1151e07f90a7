"""Compiles constraints in a process of its own, each in a child with limited CPU time and memory.

    python -m serving.inference.grammar_worker

Reads lines `{"kind", "text"}` and answers each with a line: `{}` if it compiles, `{"problem": …}` if it does not or
needs too much, `{"busy": true}` if the machine gave the child no time. Uses the engines' library, with a vocabulary
like a model's: a grammar's cost is mostly that of finding the tokens that each of its states allows.

A compiled grammar is also followed for some steps: an ambiguous one compiles fast and then stops a decoder.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

CPU_S = 3.0
"""CPU time to compile one constraint: a length bound of 128 or more costs about 1.6 s."""
_FOLLOW_S = 0.5
"""CPU time to follow it."""
_CPU_LIMIT_S = 4
WALL_S = 4.5
_MEMORY_BYTES = 256 * 2**20
"""Memory of one constraint, beyond the library's own."""
_MAX_COMPILED_BYTES = 16 * 2**20
"""Size of a compiled grammar: 500 optional properties have about 4 MiB."""
_STOP = 256
_STEPS = 256
_TOO_MUCH = f"needs more than {CPU_S:g} s of CPU time or {_MEMORY_BYTES // 2**20} MiB to compile: make it smaller"
_PREFIX = re.compile(r"^\[[\d:]+\] \S+: ")
_INTERNALS = re.compile(r"Check failed|/project/|\.cc\b|xgrammar", re.IGNORECASE)


def main() -> None:
    import xgrammar

    tokens = xgrammar.TokenizerInfo(
        _vocabulary(), vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[_STOP], add_prefix_space=False
    )
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        print(json.dumps(_judge(xgrammar, tokens, json.loads(line))), flush=True)


def _vocabulary() -> list[bytes]:
    """Return 256 bytes, the stop token, and 32,000 others: words, numbers, marks and Japanese, as a model has."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = {"".join(draw.choices(letters, range(26, 0, -1), k=draw.randint(2, 8))) for _ in range(20_000)}
    numbers = {str(value) for value in range(10, 1110)}
    marks = {"".join(draw.choices('"{}[]:,.-_()\\/ \n', k=draw.randint(2, 3))) for _ in range(2_000)}
    characters = {chr(draw.randint(0x3040, 0x9FFF)) for _ in range(4_000)}
    others = sorted(words | {f" {word}" for word in sorted(words)[::2]} | numbers | marks | characters)
    return [bytes([value]) for value in range(256)] + [b"</s>"] + [text.encode() for text in others]


def _judge(library: Any, tokens: Any, constraint: dict[str, str]) -> dict[str, Any]:
    """Return the verdict of a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.close(reading)
            os.write(writing, json.dumps(_limited(library, tokens, constraint)).encode())
        os._exit(0)
    os.close(writing)
    answered = bool(select.select([reading], [], [], WALL_S)[0])
    verdict = os.read(reading, 2**16) if answered else b""
    os.close(reading)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not answered:
        return {"busy": True}
    # Nothing written: the kernel ended the child for its CPU time, or the library for want of memory.
    found: dict[str, Any] = json.loads(verdict) if verdict else {"problem": _TOO_MUCH}
    return found


def _limited(library: Any, tokens: Any, constraint: dict[str, str]) -> dict[str, Any]:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # warnings quote the constraint
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_LIMIT_S, _CPU_LIMIT_S))
    signal.setitimer(signal.ITIMER_PROF, CPU_S)  # its signal ends the process, as the limit does in whole seconds
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))
    compiler = library.GrammarCompiler(tokens, max_threads=1, cache_enabled=False)
    compile_text = {
        "json": compiler.compile_json_schema,
        "regex": compiler.compile_regex,
        "grammar": compiler.compile_grammar,
    }[constraint["kind"]]
    try:
        compiled = compile_text(constraint["text"])
    except MemoryError:
        return {"problem": _TOO_MUCH}
    except Exception as error:  # noqa: BLE001  # the library has no exception of its own
        return {"problem": _reason(str(error))}
    if compiled.memory_size_bytes > _MAX_COMPILED_BYTES:
        return {"problem": "is too large once compiled: make it smaller"}
    signal.setitimer(signal.ITIMER_PROF, _FOLLOW_S)
    if not _can_be_followed(library, compiled, tokens.vocab_size):
        return {"problem": "allows no answer"}
    return {}


def _reason(message: str) -> str:
    reason = _PREFIX.sub("", message.strip()).splitlines()[0] if message.strip() else ""
    return "does not compile" if not reason or _INTERNALS.search(reason) else f"does not compile: {reason[:160]}"


def _can_be_followed(library: Any, compiled: Any, vocabulary_size: int) -> bool:
    """Follow the grammar, once with as few different bytes as possible and once at random."""
    for choice in (random.Random(1), None):
        matcher = library.GrammarMatcher(compiled)
        mask = library.allocate_token_bitmask(1, vocabulary_size)
        last = -1
        for step in range(_STEPS):
            matcher.fill_next_token_bitmask(mask)
            words = mask[0, : _STOP // 32 + 1].tolist()
            allowed = [value for value in range(256) if words[value // 32] >> (value % 32) & 1]
            if not allowed:
                if step == 0 and not words[_STOP // 32] & 1:
                    return False
                break
            last = choice.choice(allowed) if choice else last if last in allowed else allowed[0]
            if not matcher.accept_token(last) or matcher.is_terminated():
                break
    return True


if __name__ == "__main__":
    main()
