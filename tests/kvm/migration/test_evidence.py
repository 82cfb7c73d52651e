"""What the events of a dead source say of its guest, and what is made of QEMU's answers; pure."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from hvcore import Deadline, MigrationPhase, MigrationPolicy
from hvcore_kvm.events import QemuEvent
from hvcore_kvm.migration.evidence import Whereabouts, whereabouts
from hvcore_kvm.migration.monitor import Monitor
from hvcore_kvm.migration.status import status_of
from hvcore_kvm.process import ProcessIdentity
from hvcore_kvm.qmp import QmpTimeout
from hvcore_kvm.runtime import MigrationRecord

OWNER = ProcessIdentity(pid=1, start_time=1, boot_id="x")
RUNNING = MigrationRecord(
    role="source",
    runs=True,
    policy=MigrationPolicy(),
    owner=OWNER,
    began=100.0,
    downtime_limit=0.3,
    raised=100.0,
)
PAUSED = attrs.evolve(RUNNING, runs=False)
STOPPED = attrs.evolve(RUNNING, policy=MigrationPolicy(live=False))


def _events(words: str) -> list[QemuEvent]:
    """Names of events; small letters are the status of a migration. A second lies between two."""
    found = []
    for index, word in enumerate(words.split()):
        data = {"status": word} if word.islower() else {}
        found.append(QemuEvent(name="MIGRATION" if data else word, time=99.0 + index, data=data))
    return found


@pytest.mark.parametrize(
    ("record", "words", "where"),
    [
        (RUNNING, "RESUME", Whereabouts.HERE),
        (RUNNING, "STOP setup active", Whereabouts.HERE),  # it was stopped before, and resumed unseen
        (RUNNING, "RESUME setup active MIGRATION_PASS", Whereabouts.HERE),
        (RUNNING, "RESUME setup active STOP", Whereabouts.PERHAPS),
        (RUNNING, "RESUME setup active STOP pre-switchover", Whereabouts.PERHAPS),
        (RUNNING, "RESUME setup active STOP device", Whereabouts.PERHAPS),
        (RUNNING, "RESUME setup active STOP failed RESUME", Whereabouts.HERE),
        (RUNNING, "RESUME setup active STOP RESUME cancelled", Whereabouts.HERE),
        (RUNNING, "RESUME setup active STOP completed", Whereabouts.GONE),
        (RUNNING, "RESUME setup active STOP postcopy-active", Whereabouts.GONE),
        (RUNNING, "RESUME setup active postcopy-paused", Whereabouts.GONE),
        (RUNNING, "completed setup", Whereabouts.HERE),  # of the migration by which it came
        (PAUSED, "RESUME setup", Whereabouts.HERE),
        (PAUSED, "RESUME setup active", Whereabouts.PERHAPS),
        (PAUSED, "RESUME setup active failed", Whereabouts.HERE),
        (STOPPED, "RESUME STOP setup active", Whereabouts.PERHAPS),
        (STOPPED, "RESUME STOP setup", Whereabouts.HERE),
    ],
)
def test_where_a_guest_is_whose_source_is_dead(record: MigrationRecord, words: str, where: Whereabouts) -> None:
    """Here until it can have gone over, gone when that was seen, and between the two nobody knows."""
    assert whereabouts(record, _events(words)) is where


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {"status": 5, "ram": []},
        {"status": "new-in-a-later-version"},
        {
            "status": "active",
            "ram": {"mbps": float("inf"), "total": -1, "transferred": True},
            "error-desc": "x" * 10**6,
        },
        {"status": "completed", "downtime": "long", "total-time": None},
    ],
)
def test_any_answer_of_qemu_is_a_status(answer: Any) -> None:
    """A QEMU that its guest has taken over may answer anything; a phase nobody knows is under way."""
    status = status_of(answer)
    assert status.transferred >= 0
    assert status.total >= 0
    assert status.rate == 0.0
    assert len(status.error) <= 1000
    known = isinstance(answer, dict) and answer.get("status") in ("active", "completed")
    assert known or status.phase in (MigrationPhase.NONE, MigrationPhase.ACTIVE)


class _Late:
    """A QEMU that has ended, and says how long it took when it is asked for the fifth time."""

    def __init__(self) -> None:
        self.asked = 0

    def execute(self, command: str, arguments: Any, **_: Any) -> Any:
        assert command == "query-migrate"
        self.asked += 1
        done = {"total-time": 70, "downtime": 30} if self.asked == 5 else {"total-time": 0, "downtime": 0}
        return {"status": "completed", "ram": {"total": 1 << 26, "transferred": 1 << 20}, **done}

    def wait_event(self, *_: Any) -> None:
        raise QmpTimeout("nothing came", sent=True)


def test_how_long_it_took_is_waited_for() -> None:
    """QEMU says that it has completed a moment before it says how long that took."""
    client: Any = _Late()
    status = Monitor(client, Deadline.after(30)).status()
    assert (status.total_time, status.downtime, client.asked) == (0.07, 0.03, 5)
