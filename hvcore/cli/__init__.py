"""The ``hv`` command: hvcore for people and shell scripts. It knows hvcore's public names and no driver.

Exit statuses, of every command:

====  ==================================================================================
0     done
1     failed: the hypervisor or the host said no, or it ended in an error that is named
2     wrong usage or invalid input: command line, instance file, driver or settings
3     not there: no such instance, or it is not running
4     busy or in the wrong state: locked by another operation, running already, not pausable
5     not supported by the driver, or denied by a policy
6     the outcome is unknown: it may have happened; look before you act
130   interrupted; 128 plus the number of a signal when a signal ended it
====  ==================================================================================

What was asked for goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
from types import FrameType
from typing import NoReturn

_NEEDED = ("click", "rich")


def main() -> NoReturn:
    """Run ``hv`` with the arguments of this process, and exit with a status of the table above."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"hv: {' and '.join(missing)} not installed; install with pip install 'hvcore[cli]'", file=sys.stderr)
        sys.exit(1)
    from hvcore.cli.root import hv

    # As an exception, so that what is half done is undone and a terminal in raw mode is put back.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit_on_signal)
    hv.main(prog_name="hv")


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
