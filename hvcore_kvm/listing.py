"""Which instances hold something on this host, and which live: asks none of them anything, and imports little."""

from __future__ import annotations

import json

from hvcore import Directories, InstanceListing, InstanceName
from hvcore_kvm import process
from hvcore_kvm.directory import EVENTS, InstanceDirectory, instance_names
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
    """Which process an instance has; ``None`` when there is none.

    Reads the one field of the record that a listing needs, by hand: structuring whole records costs more than
    everything else about a listing. Where the record is missing or damaged, the process is found by the event file,
    which only QEMU holds open: an instance is not lost with a file.
    """
    try:
        identity = json.loads(directory.tail(PROCESS, _LIMIT))["identity"]
        return ProcessIdentity(
            pid=int(identity["pid"]), start_time=int(identity["start_time"]), boot_id=str(identity["boot_id"])
        )
    except (ValueError, KeyError, TypeError):
        return find_process(directory)


def find_process(directory: InstanceDirectory) -> ProcessIdentity | None:
    """The process that holds the event file of an instance."""
    for pid in process.holders(directory.join(EVENTS)):
        try:
            return process.identify(pid)
        except ProcessLookupError:
            continue
    return None
