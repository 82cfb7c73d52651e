"""What is different between a running instance and a definition of it, and when each difference can take effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hvcore import Instance, PlannedChange, definition_changes
from hvcore_kvm.families import Families
from hvcore_kvm.hotplug.modification import pluggable
from hvcore_kvm.hotplug.rng import RNG_PARAMETERS, rng_stays
from hvcore_kvm.parameters.table import parameter_table
from hvcore_kvm.placement import family_of
from hvcore_kvm.runtime import Placement, RuntimeRecord


def changes_of(
    families: Families, running: RuntimeRecord, wanted: Instance, places: Placement | None
) -> tuple[PlannedChange, ...]:
    """Every difference, in the order of the definition.

    Args:
        families: the family plugins.
        running: what the instance runs with.
        wanted: another definition of it, without errors.
        places: where each of its devices sits.
    """
    found = definition_changes(parameter_table(families), running.instance, wanted, pluggable=pluggable)
    return tuple(_refined(change, running, wanted, places) for change in found)


def _refined(change: PlannedChange, record: RuntimeRecord, wanted: Instance, places: Placement | None) -> PlannedChange:
    """What the declaration of a parameter alone does not say."""
    running = record.instance.params
    if change.path == "vcpus" and wanted.vcpus <= int(running.get("vcpus_max") or 0):
        return attrs.evolve(change, effect="hotplug")
    if change.path == "params.floppy" and None in (change.before, change.after):
        # The drive comes or goes with it.
        return attrs.evolve(change, effect="start")
    if change.path == "params.throttle_groups" and {*change.before} != {*change.after}:
        return attrs.evolve(change, effect="start")
    if change.path.startswith("params.usb") and change.effect == "hotplug" and _has_socket(running, wanted.params):
        return attrs.evolve(change, effect="start")
    if change.path.removeprefix("params.") in RNG_PARAMETERS and not _rng_moves(record, places):
        return attrs.evolve(change, effect="start")
    if change.path.startswith("params.virtio_ports") and not _ports_change(running, wanted.params):
        return attrs.evolve(change, effect="start")
    return change


def _rng_moves(record: RuntimeRecord, places: Placement | None) -> bool:
    """The source of randomness can come, go, or go and come."""
    if record.instance.params.get("rng", True) is not False:
        return not rng_stays(record.machine, places)
    family = family_of(record.machine)
    return family == "pc" or (family in ("q35", "virt") and record.ports > 0)


def _ports_change(running: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """There is a controller to plug ports to, and none becomes a port of another kind."""
    kinds = [{p["name"]: p.get("console", False) for p in each.get("virtio_ports", ())} for each in (running, wanted)]
    has_controller = bool(kinds[0]) or running.get("guest_agent", True) is not False
    return has_controller and all(kinds[0].get(name, kind) == kind for name, kind in kinds[1].items())


def _has_socket(*params: Mapping[str, Any]) -> bool:
    """Some USB device is one that a program brings: its socket is made at the start."""
    return any(device.get("type") == "redir" for each in params for device in each.get("usb", ()))
