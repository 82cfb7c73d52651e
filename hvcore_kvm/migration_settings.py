"""A migration policy in QEMU's words: capabilities and parameters of a migration (qapi/migration.json); pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from hvcore import Finding, MigrationPolicy

_UNLIMITED = 2**40
_MIB = 2**20

_ALWAYS = ("return-path", "events")
"""Without a return path, a source calls a migration completed that its destination has refused."""

_SINCE = {"switchover-ack": "8.1", "dirty-limit": "8.1", "postcopy-preempt": "7.1", "zero-copy-send": "7.1"}


def migration_capabilities(policy: MigrationPolicy) -> dict[str, str]:
    """The capabilities that both sides switch on, and the field of the policy that each comes from.

    Args:
        policy: how the migration should go, without findings.
    """
    postcopy = policy.going_over_early
    wanted = {
        "multifd": ("multifd", policy.multifd is not None),
        "zero-copy-send": ("zero_copy", policy.zero_copy),
        "postcopy-ram": ("postcopy", policy.live and postcopy is not None),
        "postcopy-preempt": ("postcopy.preempt", policy.live and postcopy is not None and postcopy.preempt),
        "auto-converge": ("auto_converge", policy.live and policy.throttling is not None),
        "dirty-limit": ("dirty_limit", policy.dirty_limit is not None),
        "switchover-ack": ("switchover", policy.switchover == "ack"),
        **_pause(policy),
    }
    return {
        **dict.fromkeys(_ALWAYS, ""),
        **{name: field for name, (field, used) in wanted.items() if used},
    }


def _pause(policy: MigrationPolicy) -> dict[str, tuple[str, bool]]:
    """The guest waits before it goes over: until the caller says so, and until its disks are the same on both sides."""
    field = "copy_disks" if policy.copy_disks and policy.switchover != "paused" else "switchover"
    return {"pause-before-switchover": (field, policy.switchover == "paused" or bool(policy.copy_disks))}


def migration_parameters(policy: MigrationPolicy) -> dict[str, Any]:
    """The arguments of ``migrate-set-parameters`` on either side; those for TLS name objects and are not among them.

    Args:
        policy: how the migration should go, without findings.
    """
    bandwidth = policy.max_bandwidth or _UNLIMITED
    values: dict[str, Any] = {
        "max-bandwidth": bandwidth,
        "max-postcopy-bandwidth": 0 if policy.max_bandwidth is None else bandwidth,
        "downtime-limit": max(1, round(policy.downtime_limit * 1000)),
    }
    if policy.multifd is not None:
        values |= {
            "multifd-channels": policy.multifd.channels,
            "multifd-compression": policy.multifd.compression,
        }
    throttle = policy.throttling
    if throttle is not None:
        values |= {
            "cpu-throttle-initial": throttle.initial,
            "cpu-throttle-increment": throttle.increment,
            "max-cpu-throttle": throttle.maximum,
        }
    if policy.dirty_limit is not None:
        values["vcpu-dirty-limit"] = policy.dirty_limit // _MIB
    return values


def check_migration_support(policy: MigrationPolicy, known: Collection[str], whose: str) -> Iterator[Finding]:
    """Find what a policy asks for that a QEMU does not have; paths below the policy.

    Args:
        policy: how the migration should go, without findings.
        known: migration capabilities that the QEMU has.
        whose: which QEMU that is, for people.
    """
    for name, field in migration_capabilities(policy).items():
        if name not in known:
            since = f"; QEMU {_SINCE[name]} and newer have it" if name in _SINCE else ""
            message = f"{whose} has no migration capability {name}{since}"
            yield Finding(code="qemu-too-old", path=field, message=message)
