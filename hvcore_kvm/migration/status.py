"""What QEMU says of a migration (``query-migrate``), in hvcore's words; pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hvcore import MigrationPhase, MigrationStatus

_PHASES = {
    "none": MigrationPhase.NONE,
    "setup": MigrationPhase.SETUP,
    "wait-unplug": MigrationPhase.SETUP,
    "active": MigrationPhase.ACTIVE,
    "pre-switchover": MigrationPhase.PRE_SWITCHOVER,
    "device": MigrationPhase.DEVICE,
    "postcopy-device": MigrationPhase.POSTCOPY,
    "postcopy-active": MigrationPhase.POSTCOPY,
    "postcopy-paused": MigrationPhase.POSTCOPY_PAUSED,
    "postcopy-recover": MigrationPhase.POSTCOPY_PAUSED,
    "postcopy-recover-setup": MigrationPhase.POSTCOPY_PAUSED,
    "completed": MigrationPhase.COMPLETED,
    "cancelling": MigrationPhase.CANCELLING,
    "cancelled": MigrationPhase.CANCELLED,
    "failed": MigrationPhase.FAILED,
}
"""QEMU's ``MigrationStatus`` (qapi/migration.json); one that is not here is under way."""


def phase_of(word: str) -> MigrationPhase:
    """The phase that QEMU's word stands for."""
    return _PHASES.get(word, MigrationPhase.ACTIVE)


def passes_of(answer: Any) -> int:
    """How many times the guest's memory has been gone through completely, by an answer of ``query-migrate``."""
    return max(0, int(_number(_table(answer).get("ram"), "dirty-sync-count")) - 1)


def status_of(answer: Any) -> MigrationStatus:
    """The status in an answer of ``query-migrate``. A QEMU that its guest has taken over may answer anything."""
    said = _table(answer)
    ram = said.get("ram")
    phase = phase_of(str(said.get("status", "none")))
    over = phase is MigrationPhase.COMPLETED
    return MigrationStatus(
        phase=phase,
        transferred=int(_number(ram, "transferred")),
        remaining=int(_number(ram, "remaining")),
        total=int(_number(ram, "total")),
        rate=_number(ram, "mbps") * 1e6 / 8,
        dirty_rate=_number(ram, "dirty-pages-rate") * _number(ram, "page-size"),
        expected_downtime=None if over or "expected-downtime" not in said else _number(said, "expected-downtime") / 1e3,
        downtime=_number(said, "downtime") / 1e3 if over and "downtime" in said else None,
        total_time=_number(said, "total-time") / 1e3,
        error=str(said.get("error-desc", ""))[:1000],
    )


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(table: Any, key: str) -> float:
    value = _table(table).get(key)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if good and value is not None else 0.0
