"""A machine whose clock is wrong: every reading of the local time within Kitae, and the signatures of its requests."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, tzinfo
from typing import Self
from unittest.mock import patch

from botocore.compat import get_current_datetime

_time = time.time


@contextmanager
def clock_off(seconds: float) -> Iterator[None]:
    """Run the block on a machine whose clock is `seconds` ahead."""

    class Off(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(_time() + seconds, tz)

    def signed_at(remove_tzinfo: bool = True) -> datetime:
        return get_current_datetime(remove_tzinfo) + timedelta(seconds=seconds)

    ours = [module for name, module in list(sys.modules.items()) if name.startswith(("ray_jobs.", "serving."))]
    with ExitStack() as patches:
        patches.enter_context(patch("time.time", lambda: _time() + seconds))
        patches.enter_context(patch("botocore.auth.get_current_datetime", signed_at))
        for module in ours:
            if vars(module).get("datetime") is datetime:
                patches.enter_context(patch.object(module, "datetime", Off))
        yield
