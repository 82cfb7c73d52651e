"""Guests that write tokens to storage both hosts have find nobody else's there, whatever dies in whichever phase."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import InstanceState, MigrationInfo, MigrationPhase, MigrationPolicy, OutcomeUnknown, Size, WrongState
from hvcore.conformance.interruption import count_cuts

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

PATIENCE = 60.0
FAST = MigrationPolicy(tls=False, max_bandwidth=Size(1 << 30))
SLOW = MigrationPolicy(tls=False, max_bandwidth=Size(8 << 20), downtime_limit=0.001)
HELD = MigrationPolicy(tls=False, max_bandwidth=Size(1 << 30), switchover="paused")
POSTCOPY = hvcore.read_migration_policy({"tls": False, "max_bandwidth": "32MiB", "postcopy": {"after_passes": 1}})[0]
POLICIES = {"active": SLOW, "pre-switchover": HELD, "device": HELD, "postcopy": POSTCOPY}
PHASES = ("setup", "active", "pre-switchover", "device", "completed", "postcopy")


class Wire:
    """What is between two hosts: carries what one sends to the other, holds it back, or breaks.

    Args:
        port: where the other host listens.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._carries = threading.Event()
        self._carries.set()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def hold(self) -> None:
        """Carry nothing of what the first host sends from now on."""
        self._carries.clear()

    def release(self) -> None:
        self._carries.set()

    def cut(self) -> None:
        """Break all connections there are."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.release()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in self._threads)
        for one in self._sockets:
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                here = self._listener.accept()[0]
            except OSError:
                return
            try:
                there = socket.create_connection(("127.0.0.1", self._to), PATIENCE)
            except OSError:
                here.close()
                continue
            there.settimeout(None)
            self._sockets += [here, there]
            for ends in ((here, there), (there, here)):
                self._threads.append(threading.Thread(target=self._carry, args=ends))
                self._threads[-1].start()

    def _carry(self, source: socket.socket, destination: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if destination.getpeername()[1] == self._to:
                    self._carries.wait()
                destination.sendall(data)
        with contextlib.suppress(OSError):
            destination.shutdown(socket.SHUT_WR)


@attrs.define
class Move:
    """A guest on its way that writes tokens."""

    pair: Any
    phase: str
    info: MigrationInfo
    wire: Wire
    console: Any

    @property
    def disk(self) -> Path:
        return Path(self.pair.directory) / "shared.raw"

    def tell(self, side: str, success: bool, timeout: float) -> None:
        """Call a finaliser, which may refuse."""
        try:
            if side == "source":
                self.pair.source.driver.finalize_migration_source("web1", success, timeout=timeout)
            else:
                self.pair.destination.driver.finalize_migration_dst(self.info, success, timeout=timeout)
        except (WrongState, OutcomeUnknown, hvcore.DeadlineExceeded):
            return

    def nobody_else_wrote(self) -> None:
        """No guest has found a token it did not write."""
        content = self.disk.read_bytes()
        expected, found = struct.unpack_from("<II", content, 512)
        assert (expected, found) == (0, 0), f"a guest wrote {expected} and found {found}"

    def token(self) -> int:
        """The last token on the storage."""
        return int(struct.unpack_from("<I", self.disk.read_bytes())[0])

    def goes_on(self, side: str) -> None:
        """The guest writes on a side, and its own last token is what is there."""
        console = self.console if side == "source" else self.pair.destination.attach("web1")
        last = 0
        for more in (0, 20):
            wanted = last + more
            while last <= wanted:
                console.send(b"W")
                console.expect(b"token=")
                last = int(console.expect(b"\r\n"), 16)
                assert self.token() == last
                console.send(b"w")
                console.expect(b"ok")

    def drive(self) -> None:
        """Bring it to its phase."""
        driver = self.pair.source.driver
        if self.phase == "postcopy":
            self.pair.ask("source", "migrate-set-parameters", **{"max-postcopy-bandwidth": 1 << 20})
        if self.phase == "device":
            self.pair.until(MigrationPhase.PRE_SWITCHOVER, switch_over=False)
            self.wire.hold()
            driver.continue_migration("web1", switch_over=True, wait=0.0)
        wanted = MigrationPhase(self.phase)
        self.pair.until(wanted, switch_over=self.phase in ("device", "completed"))
        if self.phase == "postcopy":
            self.pair.destination.driver.finalize_migration_dst(self.info, True)

    def states(self) -> dict[str, str]:
        """What each side says of it."""
        found = {}
        for side, host in self.pair.sides().items():
            try:
                found[side] = host.driver.get_instance_info("web1").state.value
            except hvcore.InstanceNotFound:
                found[side] = "nothing"
        return found

    def stands_still(self) -> None:
        """No QEMU lets it run, and each side says so."""
        states = self.states()
        assert InstanceState.RUNNING.value not in states.values()
        for side, host in self.pair.sides().items():
            state = states[side]
            if state == InstanceState.UNKNOWN.value and side == "destination":
                assert self.pair.ask(side, "query-migrate")["status"] == "postcopy-paused"
            elif any(row.alive for row in host.driver.list_instances().instances):
                assert self.pair.ask(side, "query-status")["running"] is False, side


@pytest.fixture
def reach(pair: Any) -> Iterator[Callable[..., Move]]:
    """Brings a guest that writes tokens to a phase of its migration."""
    closing: list[Callable[[], None]] = []

    def go(phase: str, apart: bool = False) -> Move:
        """With ``apart``, both operations are those of host applications that have ended since."""
        carry_out: Callable[[Callable[[], Any]], Any] = count_cuts if apart else lambda operation: operation()
        policy = POLICIES.get(phase, FAST)
        disk = hvcore.Disk(path=str(pair.directory / "shared.raw"), format="raw", params={"bus": "ide"})
        console = pair.start(security_model="none", disks=[disk])
        for letter in (b"d", b"w") if phase in ("active", "postcopy") else (b"w",):
            console.send(letter)
            console.expect(b"ok")
        info, told = pair.source.driver.migration_info("web1"), pair.directory / "target"
        carry_out(lambda: told.write_text(str(pair.accept(policy, info).port)))
        pair.keep("destination")
        wire = Wire(int(told.read_text()))
        closing.append(wire.close)
        move = Move(pair, phase, info, wire, console)
        port = wire.port if phase != "setup" else _nowhere(closing)
        target = hvcore.MigrationTarget(address="127.0.0.1", port=port)
        carry_out(lambda: pair.source.driver.migrate_instance("web1", target, policy))
        move.drive()
        return move

    yield go
    for close in reversed(closing):
        close()


def _nowhere(closing: list[Callable[[], None]]) -> int:
    """A port whose queue of connections is full: who connects waits."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    closing.append(listener.close)
    for _ in range(3):
        waiting = socket.socket()
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
        closing.append(waiting.close)
    return int(listener.getsockname()[1])


def _break(move: Move, victim: str) -> None:
    if victim == "wire":
        move.wire.cut()
    elif victim == "callers" and move.phase == "postcopy":
        move.pair.ask("source", "migrate-set-parameters", **{"max-postcopy-bandwidth": 0})
    elif victim in ("source", "destination"):
        move.pair.kill(victim)
        move.wire.release()


def _ends(phase: str, victim: str, first: bool) -> list[list[str]]:
    """Where it may run when all is over."""
    if phase in ("setup", "active", "pre-switchover"):
        return [[] if victim == "source" else ["source"]]
    if phase == "device":
        # All of it may have been on the wire when the source was killed.
        return [[], ["destination"]][: 1 + first] if victim == "source" else [["source"]]
    if phase == "completed":
        # What is told that it failed before it was let run goes; the source has sent all of it, and is not continued.
        return [["destination"] if first and victim != "destination" else []]
    return [["destination"] if victim == "callers" else []]


@pytest.mark.parametrize("first", [True, False], ids=["success", "failure"])
@pytest.mark.parametrize("victim", ["source", "destination", "wire", "callers"])
@pytest.mark.parametrize("phase", PHASES)
def test_never_two(reach: Callable[..., Move], phase: str, victim: str, first: bool) -> None:
    """Whoever finishes it, believing whatever first: it runs on one side, or on none and that is said."""
    move = reach(phase, apart=victim == "callers")
    pair, ends = move.pair, _ends(phase, victim, first)
    _break(move, victim)
    for success, side in itertools.product((first, not first), ("destination", "source")):
        # Where it has not arrived, a success is waited for in vain; nor does QEMU stop connecting.
        vain = phase == "setup" or (success and ["destination"] not in ends)
        move.tell(side, success, 2.0 if vain else PATIENCE)
        move.nobody_else_wrote()
        assert len(pair.running()) <= 1
    for host in pair.sides().values():
        host.driver.recover()
    move.nobody_else_wrote()
    running = pair.running()
    assert running in ends
    if running:
        move.goes_on(running[0])
    else:
        move.stands_still()
    move.nobody_else_wrote()
    # A guest whose memory is on two hosts can go on nowhere, until they are connected again.
    broken = phase == "postcopy" and victim in ("source", "wire")
    assert (move.states()["destination"] == InstanceState.UNKNOWN.value) is broken
