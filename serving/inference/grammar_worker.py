"""Compiles constraints in a process of its own, each in a child with limited CPU time and memory.

    python -m serving.inference.grammar_worker

Reads lines `{"kind", "text"}` and answers each with a line: `{}` if it compiles, `{"problem": …}` if it does not or
needs too much, `{"busy": true}` if the machine gave the child no time. Uses the engines' library, with a vocabulary of
single bytes instead of a model's tokens: the states of a grammar are the same.

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

CPU_S = 1
"""CPU time of one constraint."""
WALL_S = 4.0
_MEMORY_BYTES = 256 * 2**20
"""Memory of one constraint, beyond the library's own."""
_MAX_COMPILED_BYTES = 4 * 2**20
"""Size of a compiled grammar: 1,000 optional properties have about 3.5 MiB."""
_STEPS = 256
_TOO_MUCH = f"needs more than {CPU_S} s of CPU time or {_MEMORY_BYTES // 2**20} MiB to compile: make it smaller"
_PREFIX = re.compile(r"^\[[\d:]+\] \S+: ")
_INTERNALS = re.compile(r"Check failed|/project/|\.cc\b|xgrammar", re.IGNORECASE)


def main() -> None:
    import xgrammar

    vocabulary = [bytes([value]) for value in range(256)] + [b"</s>"]
    tokens = xgrammar.TokenizerInfo(vocabulary, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[256])
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        print(json.dumps(_judge(xgrammar, tokens, json.loads(line))), flush=True)


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
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
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
    if not _can_be_followed(library, compiled):
        return {"problem": "allows no answer"}
    return {}


def _reason(message: str) -> str:
    reason = _PREFIX.sub("", message.strip()).splitlines()[0] if message.strip() else ""
    return "does not compile" if not reason or _INTERNALS.search(reason) else f"does not compile: {reason[:160]}"


def _can_be_followed(library: Any, compiled: Any) -> bool:
    """Follow the grammar, once with as few different bytes as possible and once at random."""
    for choice in (random.Random(1), None):
        matcher = library.GrammarMatcher(compiled)
        mask = library.allocate_token_bitmask(1, 257)
        last = -1
        for step in range(_STEPS):
            matcher.fill_next_token_bitmask(mask)
            words = mask[0].tolist()
            allowed = [value for value in range(256) if words[value // 32] >> (value % 32) & 1]
            if not allowed:
                if step == 0 and not words[8] & 1:
                    return False
                break
            last = choice.choice(allowed) if choice else last if last in allowed else allowed[0]
            if not matcher.accept_token(last) or matcher.is_terminated():
                break
    return True


if __name__ == "__main__":
    main()
