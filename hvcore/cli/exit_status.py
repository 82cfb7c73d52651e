"""Exit statuses of ``hv``, and which error ends in which."""

from __future__ import annotations

import enum

from hvcore.errors import (
    AlreadyRunning,
    HypervisorError,
    InstanceBusy,
    InstanceNotFound,
    InvalidParameters,
    LoadError,
    NotRunning,
    OutcomeUnknown,
    PolicyDenied,
    UnsupportedOperation,
    WrongState,
)


class ExitStatus(enum.IntEnum):
    """The exit statuses; scripts may rely on them."""

    DONE = 0
    FAILED = 1
    INVALID = 2
    NOT_THERE = 3
    BUSY = 4
    UNSUPPORTED = 5
    UNKNOWN = 6
    INTERRUPTED = 130


EPILOG = """\
Exit status: 0 done; 1 failed; 2 wrong usage or invalid input; 3 not there (no such instance, or it is not running);
4 busy or in the wrong state; 5 not supported or denied; 6 outcome unknown (it may have happened: look before you
act); 130 interrupted."""
"""The same for ``hv --help``."""

_STATUSES: tuple[tuple[ExitStatus, tuple[type[HypervisorError], ...]], ...] = (
    # What was given cannot be used as it is: the instance, or the driver and its settings.
    (ExitStatus.INVALID, (InvalidParameters, LoadError)),
    (ExitStatus.NOT_THERE, (InstanceNotFound, NotRunning)),
    (ExitStatus.BUSY, (InstanceBusy, AlreadyRunning, WrongState)),
    (ExitStatus.UNSUPPORTED, (UnsupportedOperation, PolicyDenied)),
    (ExitStatus.UNKNOWN, (OutcomeUnknown,)),
)


def exit_status(error: HypervisorError) -> ExitStatus:
    """The exit status an error ends in."""
    for status, kinds in _STATUSES:
        if isinstance(error, kinds):
            return status
    return ExitStatus.FAILED
