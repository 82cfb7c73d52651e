"""Which instances something was left half done with, whether they are alive or not: by their kept records alone.

Everything that can be left of an instance that is listed is in its volatile directory, or is found with it. What can be
left of one that is not listed is an undertaking with its snapshots.
"""

from __future__ import annotations

import os

from hvcore import Directories, HostError, InterruptedInstances
from hvcore_kvm.directory import InstanceDirectory, instance_names
from hvcore_kvm.snapshots.record import UNDERTAKING


def list_interrupted(directories: Directories) -> InterruptedInstances:
    """Name them; one that somebody changes a snapshot of now is among them.

    Args:
        directories: the driver's.

    Returns:
        Names, sorted. It is one look at the directory of each instance about which something is kept.

    Raises:
        HostError: the kept records cannot be looked at.
    """
    names = instance_names(directories, data=True)
    return InterruptedInstances(names=tuple(name for name in names if _is_interrupted(directories, name)))


def _is_interrupted(directories: Directories, name: str) -> bool:
    path = os.path.join(InstanceDirectory(directories, name).data_path, UNDERTAKING)
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        hint = "run it as the user who started the instance"
        raise HostError(f"cannot look at {path}: {error.strerror}", instance=name, hint=hint) from error
    return True
