"""What saving and restoring ask of QEMU's migration: its settings, and how it ended (qapi/migration.json)."""

from __future__ import annotations

from typing import Any

from hvcore import Deadline
from hvcore_kvm.qmp import QmpClient

_UNLIMITED = 2**40
_FINAL = ("completed", "failed", "cancelled")


def prepare(client: QmpClient, deadline: Deadline) -> None:
    """Switch on what a migration through a pipe needs, and off what it cannot have: it goes one way, by one way."""
    rows = client.execute("query-migrate-capabilities", deadline=deadline)
    wanted = [
        {"capability": row["capability"], "state": row["capability"] == "events"}
        for row in rows
        if bool(row["state"]) is not (row["capability"] == "events")
    ]
    if wanted:
        client.execute("migrate-set-capabilities", {"capabilities": wanted}, deadline=deadline)


def unlimited(client: QmpClient, deadline: Deadline) -> None:
    """Let a migration take all the bandwidth there is: its guest stands still meanwhile."""
    client.execute("migrate-set-parameters", {"max-bandwidth": _UNLIMITED}, deadline=deadline)


def status(client: QmpClient, deadline: Deadline) -> tuple[str, str]:
    """How far the migration is, and QEMU's own words if it failed."""
    answer: dict[str, Any] = client.execute("query-migrate", deadline=deadline)
    return str(answer.get("status", "none")), str(answer.get("error-desc", ""))


def wait_final(client: QmpClient, deadline: Deadline) -> tuple[str, str]:
    """Wait until nothing more comes of the migration; returns how it ended, and QEMU's own words if it failed."""
    while True:
        found = status(client, deadline)
        # One that comes in has no status until QEMU has looked at its pipe.
        if found[0] in _FINAL:
            return found
        client.wait_event(lambda event: event.get("event") == "MIGRATION", deadline)
