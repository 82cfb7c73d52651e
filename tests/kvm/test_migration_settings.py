"""A migration policy in QEMU's words: real QEMUs take the capabilities and parameters, and say that they hold."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from hvcore import Deadline, MigrationPolicy, read_migration_policy
from hvcore_kvm.capabilities import QemuCapabilities, capabilities_of
from hvcore_kvm.migration_settings import check_migration_support, migration_capabilities, migration_parameters
from hvcore_kvm.qmp import QmpClient, QmpRefused

pytestmark = pytest.mark.qemu
PATIENCE = 30.0


class Ask:
    """Asks one side of a migration."""

    def __init__(self, client: QmpClient) -> None:
        self.client = client

    def __call__(self, command: str, **given: Any) -> Any:
        return self.client.execute(command, given, deadline=Deadline.after(PATIENCE))


@pytest.fixture(params=["installed", "newer"])
def program(request: pytest.FixtureRequest) -> str:
    return "qemu-system-x86_64" if request.param == "installed" else str(request.getfixturevalue("newer_qemu"))


@pytest.fixture
def capabilities(program: str, shared_cache: Any) -> QemuCapabilities:
    return capabilities_of(program, str(shared_cache), Deadline.after(60))


@contextlib.contextmanager
def _side(program: str, *words: str) -> Iterator[Ask]:
    """One side of a migration: a machine that runs nothing."""
    ours, theirs = socket.socketpair()
    fixed = ["-nodefaults", "-display", "none", "-S", "-machine", "pc,accel=tcg", "-m", "32"]
    monitor = ["-chardev", f"socket,id=m,fd={theirs.fileno()}", "-mon", "chardev=m,mode=control"]
    process = subprocess.Popen([program, *fixed, *monitor, *words], pass_fds=[theirs.fileno()])
    pidfd = os.pidfd_open(process.pid)
    theirs.close()
    try:
        client = QmpClient(ours)
        client.negotiate(Deadline.after(PATIENCE))
        yield Ask(client)
    finally:
        ours.close()
        process.kill()
        assert select.select([pidfd], [], [], PATIENCE)[0]
        os.close(pidfd)
        process.wait()


def _set(ask: Ask, policy: MigrationPolicy) -> None:
    states = [{"capability": name, "state": True} for name in migration_capabilities(policy)]
    ask("migrate-set-capabilities", capabilities=states)
    ask("migrate-set-parameters", **migration_parameters(policy))


def _policy(**given: Any) -> MigrationPolicy:
    policy, findings = read_migration_policy(given)
    assert findings == []
    return policy


@pytest.mark.parametrize(
    ("given", "on", "parameters"),
    [
        (
            {"max_bandwidth": "100MiB", "downtime_limit": "250ms"},
            {"return-path", "events"},
            {"max-bandwidth": 100 << 20, "max-postcopy-bandwidth": 100 << 20, "downtime-limit": 250},
        ),
        (
            {"multifd": {"channels": 4, "compression": "zlib"}},
            {"multifd"},
            {"multifd-channels": 4, "multifd-compression": "zlib"},
        ),
        ({"multifd": {"compression": "zstd"}}, {"multifd"}, {"multifd-compression": "zstd"}),
        ({"multifd": {}, "zero_copy": True, "tls": False}, {"multifd", "zero-copy-send"}, {"multifd-channels": 2}),
        (
            {"auto_converge": {"initial": 30, "increment": 15, "maximum": 80}},
            {"auto-converge"},
            {"cpu-throttle-initial": 30, "cpu-throttle-increment": 15, "max-cpu-throttle": 80},
        ),
        ({"on_no_convergence": "throttle"}, {"auto-converge"}, {"cpu-throttle-initial": 20}),
        ({"on_no_convergence": "postcopy"}, {"postcopy-ram"}, {"max-postcopy-bandwidth": 0}),
        (
            {"postcopy": {"after_passes": 2, "preempt": True}},
            {"postcopy-ram", "postcopy-preempt"},
            {"max-postcopy-bandwidth": 0},
        ),
        ({"switchover": "paused"}, {"pause-before-switchover"}, {}),
    ],
)
def test_qemu_holds_what_the_policy_says(program: str, given: Any, on: set[str], parameters: Any) -> None:
    """Every capability is on and every parameter has its value; without the policy, none has."""
    policy = _policy(**given)
    with _side(program) as ask:
        before = {row["capability"] for row in ask("query-migrate-capabilities") if row["state"]}
        plain = ask("query-migrate-parameters")
        try:
            _set(ask, policy)
        except QmpRefused as error:
            if "userfault" in error.text or "zero-copy" in error.text.lower():
                pytest.skip(f"this host cannot: {error.text}")
            raise
        held = {row["capability"] for row in ask("query-migrate-capabilities") if row["state"]}
        found = ask("query-migrate-parameters")
    assert on <= held
    assert not (on & before)
    assert {name: found[name] for name in parameters} == parameters
    assert any(plain[name] != found[name] for name in found)


def test_what_a_program_lacks_is_found(capabilities: QemuCapabilities) -> None:
    """With the field that asks for it, and the version that has it."""
    policy = _policy(switchover="ack", dirty_limit="1MiB")
    findings = {
        finding.path: finding
        for finding in check_migration_support(policy, capabilities.migration_capabilities, "QEMU")
    }
    if capabilities.version < (8, 1, 0):
        assert set(findings) == {"switchover", "dirty_limit"}
        assert all(f.code == "qemu-too-old" and "8.1" in f.message for f in findings.values())
    else:
        assert findings == {}
    assert list(check_migration_support(_policy(), capabilities.migration_capabilities, "QEMU")) == []


def test_both_sides_take_it_and_the_guest_goes_over(program: str, tmp_path: Any) -> None:
    """A policy for both sides, and a real migration with it: the source says that it has completed."""
    policy = _policy(multifd={"channels": 2}, tls=False, max_bandwidth="1GiB")
    address = f"unix:{tmp_path}/m"
    with _side(program, "-incoming", "defer") as there, _side(program) as here:
        for ask in (there, here):
            _set(ask, policy)
        there("migrate-incoming", uri=address)
        here("migrate", uri=address)
        ended = here.client.wait_event(
            lambda event: event["event"] == "MIGRATION" and event["data"]["status"] in ("completed", "failed"),
            Deadline.after(PATIENCE),
        )
        assert ended["data"]["status"] == "completed"
