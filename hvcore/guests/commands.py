"""Runs the programs that build guests: argument lists only, a deadline, readable failures."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hvcore.guests.errors import GuestBuildError


def run_command(command: Sequence[str], *, cwd: Path, timeout: float, what: str, hint: str) -> str:
    """Run a program to its end and return its standard output.

    The program gets no input, the C locale and a session of its own; if the deadline passes, or the caller
    is interrupted, it is killed together with its children.

    Args:
        command: the argument list.
        cwd: the directory to run in.
        timeout: the deadline in seconds.
        what: what has gone wrong if the program fails, for the error.
        hint: what to do if the program fails, for the error.

    Returns:
        The standard output as text.

    Raises:
        GuestBuildError: the program is missing, failed, or did not end in time.
    """
    try:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise GuestBuildError(f"{what}: {error}", hint=hint, command=command) from error
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        _kill_group(process)
        output, errors = process.communicate()
        reason = f"{what}: not done after {timeout:.0f} seconds"
        raise GuestBuildError(reason, hint=hint, command=command, output=errors or output) from error
    except BaseException:
        _kill_group(process)
        process.wait()
        raise
    if process.returncode != 0:
        reason = f"{what}: exit status {process.returncode}"
        raise GuestBuildError(reason, hint=hint, command=command, output=errors or output)
    return output


def _kill_group(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
