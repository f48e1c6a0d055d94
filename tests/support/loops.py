"""The event loop tests run on, and what fails a test although no assertion did.

Three things must not happen unseen: an exception that only reached the loop's exception handler, a task that outlives
its test, and a socket or transport that nobody closed (its ResourceWarning comes when it is collected, so it is
collected at once). tests/conftest.py turns what is gathered here into failures.
"""

import asyncio
import gc
import traceback
import warnings
from typing import Any

import uvloop

# A task that was cancelled needs some turns of the loop to end; one that is still there after this was left behind.
_GRACE_S = 0.2


class WatchedLoop(uvloop.Loop):
    """uvloop, keeping in ``unhandled`` what its exception handler was told."""

    unhandled: list[str] = []  # noqa: RUF012 -- one list for all loops: a loop may be gone before the test is judged

    def __init__(self) -> None:
        super().__init__()
        self.set_exception_handler(self._note)

    def close(self) -> None:
        """Close, and have what this loop's objects still warn of said now, not in some later test."""
        # uvloop warns of each transport it has to close itself. Were that warning raised, it would hang here for ever.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().close()
        self.unhandled.extend(str(warning.message) for warning in caught)
        gc.collect()

    @classmethod
    def _note(cls, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if error else ""
        rest = {key: value for key, value in context.items() if key not in ("message", "exception")}
        cls.unhandled.append(f"{context['message']} {rest or ''}\n{trace}".rstrip())


async def leftover_tasks(before: set[asyncio.Task[Any]]) -> list[str]:
    """The tasks that live beside the caller's and were not in ``before``, each with where it stands; ends them."""
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=_GRACE_S)
    found = [f"{task!r}" for task in left]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    return found
