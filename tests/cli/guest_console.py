"""``hv`` with pipes on a guest's console, and a start that waits for the guest."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

READY = b"HVCORE-GUEST ready firmware\r\n"

LEAVE = b"\x1d"
"""Ctrl-]."""

Hv = Callable[..., Any]


@contextlib.contextmanager
def piped(hv: Hv, *arguments: str) -> Iterator[Any]:
    """``hv`` with pipes, while the context lasts."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "hvcore.cli", *arguments]
    environment = hv.environment  # type: ignore[attr-defined]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, bufsize=0) as process:
        try:
            yield process
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.kill()


def start_guest(hv: Hv, instance_file: Path) -> None:
    """Start web1 and wait for its guest.

    Before its ready line a guest may drop what is typed; after it, whoever attaches is not told it any more.
    """
    started = hv("start", instance_file)
    assert started.returncode == 0, started.stderr
    with piped(hv, "console", "web1", "--log", "--follow") as reader:
        assert reader.stdout.readline() == READY
        reader.terminate()
