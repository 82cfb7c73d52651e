"""The checks, one module per topic: plain functions on a `Subject`, each for one sentence of the contract."""

from __future__ import annotations

from hvcore.conformance.check import Check, checks_of
from hvcore.conformance.checks import (
    backups,
    console,
    devices,
    errors,
    extensions,
    host,
    identity,
    lifecycle,
    loading,
    locking,
    migration,
    parameters,
    purity,
    queries,
    recovery,
    restarting,
    saving,
    snapshots,
    state,
    stopping,
)

TOPICS = (
    identity,
    parameters,
    purity,
    lifecycle,
    stopping,
    restarting,
    saving,
    snapshots,
    backups,
    recovery,
    queries,
    state,
    errors,
    locking,
    loading,
    extensions,
    devices,
    console,
    migration,
    host,
)
"""The modules of checks, in the order in which they run."""

CHECKS: tuple[Check, ...] = tuple(check for module in TOPICS for check in checks_of(module))
"""Every check."""
