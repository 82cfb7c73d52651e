"""Persistent reservations: the guest's SCSI commands that need a privilege are carried out by qemu-pr-helper.

See docs/tools/qemu-pr-helper and docs/interop/pr-helper of QEMU. QEMU connects to it by path, so its socket is in the
instance's directory, and QEMU gets a descriptor of that path: whoever it runs as reaches it, and nobody else does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hvcore_kvm.command_line import json_option
from hvcore_kvm.companions import Companion
from hvcore_kvm.families import FdRequest

if TYPE_CHECKING:
    from hvcore_kvm.directory import InstanceDirectory
    from hvcore_kvm.hardware.builder import Builder

PROGRAM = "qemu-pr-helper"

_MANAGER = "reservations0"
_SOCKET = "reservations"
_SCRIPT = """\
setpriv --pdeathsig KILL -- /bin/sh -c 'exec 3<&4 4<&-; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0"' "$0" &
exec 4<&-
read -r nothing <&3
kill $!
wait
"""
"""Serves until descriptor 3 is closed: the program itself, which listens on descriptor 4, would serve for ever."""


def reservation_manager(builder: Builder, origin: str) -> str:
    """The id of the object by which disks reach the helper; both are added once.

    Args:
        builder: what to add them to.
        origin: the disk that needs it.
    """
    if builder.first_time(_MANAGER):
        directory = builder.directory
        companion = Companion(
            name=PROGRAM,
            argv=("/bin/sh", "-c", _SCRIPT, builder.decisions.programs.get(PROGRAM, PROGRAM)),
            inherits=(lambda: directory.listen(_SOCKET),),
        )
        builder.companions.append(companion)
        # QEMU does nothing with it but to have it open for as long as it lives.
        builder.fd(FdRequest(name=PROGRAM, purpose=f"life of {PROGRAM}", open=companion.take))
        request = FdRequest(name=_SOCKET, purpose=f"path of the socket of {PROGRAM}", open=lambda: _path(directory))
        values = {"qom-type": "pr-manager-helper", "id": _MANAGER, "path": f"/proc/self/fd/{builder.fd(request)}"}
        builder.add(json_option("object", values, origin=origin))
    return _MANAGER


def _path(directory: InstanceDirectory) -> int:
    fd = os.open(directory.join(_SOCKET), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    # For the user that QEMU runs as; others do not get into the directory.
    os.chmod(f"/proc/self/fd/{fd}", 0o666)  # noqa: S103 - the directory is private
    return fd
