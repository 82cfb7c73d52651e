"""Which instances hold something on this host, and which live: asks none of them anything, and imports little."""

from __future__ import annotations

import json

from hvcore import Directories, InstanceListing, InstanceName
from hvcore_kvm import process
from hvcore_kvm.directory import InstanceDirectory, instance_names
from hvcore_kvm.process import ProcessIdentity

PROCESS = "process.json"
"""File that says which process an instance has."""

_LIMIT = 65536


def list_instances(directories: Directories) -> InstanceListing:
    """All instances that hold something, sorted by name."""
    process.reap_children()
    rows = []
    for name in instance_names(directories):
        with InstanceDirectory(directories, name) as directory:
            identity = read_identity(directory)
        alive = identity is not None and process.is_alive(identity)
        rows.append(InstanceName(name=name, alive=alive, pid=identity.pid if identity and alive else None))
    return InstanceListing(instances=tuple(rows))


def read_identity(directory: InstanceDirectory) -> ProcessIdentity | None:
    """Which process an instance has; ``None`` when there is no readable record of one.

    Reads the one field of the record that a listing needs, by hand: structuring whole records costs more than
    everything else about a listing.
    """
    try:
        identity = json.loads(directory.tail(PROCESS, _LIMIT))["identity"]
        return ProcessIdentity(
            pid=int(identity["pid"]), start_time=int(identity["start_time"]), boot_id=str(identity["boot_id"])
        )
    except (ValueError, KeyError, TypeError):
        return None
