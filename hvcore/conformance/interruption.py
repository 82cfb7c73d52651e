"""Killing a host application in the middle of an operation, at any thing it does to the host.

The host application is a forked child of the test, so that it has the driver as it is loaded here.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable

from hvcore.conformance.failure import ConformanceFailure
from hvcore.conformance.watching import CHANGES, PROCESSES, watching

_CUTS = CHANGES | PROCESSES | {"open-write", "socket.bind", "socket.connect"}
_NEVER = 1 << 30
_RAISED = 3


def count_cuts(operation: Callable[[], object]) -> int:
    """Carry out an operation in a host application of its own; says at how many points it could be killed.

    Raises:
        ConformanceFailure: the operation did not succeed.
    """
    cuts = _run(operation, _NEVER)
    if cuts is None:
        raise ConformanceFailure("the operation did not succeed in a host application of its own")
    return cuts


def kill_at(operation: Callable[[], object], cut: int) -> bool:
    """Carry out an operation in a host application that is killed just before its ``cut``-th action.

    Returns:
        It was killed; else it had finished before.
    """
    return _run(operation, cut) is None


def spread(cuts: int, most: int) -> tuple[int, ...]:
    """At most so many cuts, spread over all: the first and the last are among them."""
    if cuts <= most:
        return tuple(range(1, cuts + 1))
    return tuple(sorted({1 + round(index * (cuts - 1) / (most - 1)) for index in range(most)}))


def _run(operation: Callable[[], object], cut: int) -> int | None:
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Other threads of a test runner only wait; the child uses nothing of theirs.
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(operation, cut, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return None
    if os.WEXITSTATUS(status) != 0:
        raise ConformanceFailure(f"the operation raised {said.decode(errors='replace')}")
    return int(said)


def _child(operation: Callable[[], object], cut: int, writing: int) -> None:
    seen = 0

    def count(what: str) -> None:
        nonlocal seen
        seen += 1
        if seen == cut:
            os.kill(os.getpid(), signal.SIGKILL)

    status = 0
    try:
        with watching(_CUTS, count):
            operation()
        said = str(seen)
    except BaseException as error:
        # Whatever it is: the child must not run on as a second test runner.
        said, status = f"{type(error).__name__}: {error}", _RAISED
    os.write(writing, said.encode())
    os._exit(status)
