"""What is different between a running instance and a definition of it, and when each difference can take effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hvcore import Instance, PlannedChange, definition_changes
from hvcore_kvm.families import Families
from hvcore_kvm.hotplug.modification import pluggable
from hvcore_kvm.parameters.table import parameter_table


def changes_of(families: Families, running: Instance, wanted: Instance) -> tuple[PlannedChange, ...]:
    """Every difference, in the order of the definition.

    Args:
        families: the family plugins.
        running: what the instance runs with.
        wanted: another definition of it, without errors.
    """
    found = definition_changes(parameter_table(families), running, wanted, pluggable=pluggable)
    return tuple(_refined(change, running.params, wanted) for change in found)


def _refined(change: PlannedChange, running: Mapping[str, Any], wanted: Instance) -> PlannedChange:
    """What the declaration of a parameter alone does not say."""
    if change.path == "vcpus" and wanted.vcpus <= int(running.get("vcpus_max") or 0):
        return attrs.evolve(change, effect="hotplug")
    if change.path == "params.floppy" and None in (change.before, change.after):
        # The drive comes or goes with it.
        return attrs.evolve(change, effect="start")
    if change.path == "params.throttle_groups" and {*change.before} != {*change.after}:
        return attrs.evolve(change, effect="start")
    if change.path.startswith("params.usb") and change.effect == "hotplug" and _has_socket(running, wanted.params):
        return attrs.evolve(change, effect="start")
    return change


def _has_socket(*params: Mapping[str, Any]) -> bool:
    """Some USB device is one that a program brings: its socket is made at the start."""
    return any(device.get("type") == "redir" for each in params for device in each.get("usb", ()))
