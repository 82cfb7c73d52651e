"""Capabilities and parameters of a migration: the same on both sides, all of them said each time."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from hvcore import Finding, MigrationPolicy
from hvcore_kvm.migration.monitor import Monitor
from hvcore_kvm.migration_settings import check_migration_support, migration_capabilities, migration_parameters

_LATE = "late-block-activate"
_MANAGED = (
    "return-path",
    "events",
    "multifd",
    "zero-copy-send",
    "postcopy-ram",
    "postcopy-preempt",
    "auto-converge",
    "dirty-limit",
    "switchover-ack",
    "pause-before-switchover",
    _LATE,
)
"""Capabilities that are on or off as the policy says: one left over from an earlier migration breaks the next."""


def negotiate(monitor: Monitor, policy: MigrationPolicy, known: Collection[str], *, late: bool = False) -> None:
    """Switch capabilities on and off, and set parameters.

    Args:
        monitor: of the QEMU.
        policy: how the migration should go.
        known: capabilities that the QEMU has.
        late: disks are taken when the guest is let run, not when it has arrived; for the destination.

    Raises:
        HypervisorRefused: QEMU's own words.
    """
    wanted = {*migration_capabilities(policy), *((_LATE,) if late else ())}
    switch(monitor, known, wanted)
    monitor.execute("migrate-set-parameters", migration_parameters(policy))


def switch(monitor: Monitor, known: Collection[str], wanted: Collection[str] = ()) -> None:
    """Switch on the wanted capabilities, and off the others."""
    states = [{"capability": name, "state": name in wanted} for name in _MANAGED if name in known]
    monitor.execute("migrate-set-capabilities", {"capabilities": states})


def check_policy(policy: MigrationPolicy, known: Collection[str], whose: str) -> Iterator[Finding]:
    """Find what a policy asks for that the QEMU of one side does not have.

    Args:
        policy: how the migration should go.
        known: capabilities that the QEMU has.
        whose: which QEMU that is, for people.
    """
    for finding in check_migration_support(policy, known, whose):
        yield finding.below("policy")
