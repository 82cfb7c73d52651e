"""Copied disks of a guest that goes over by post-copy: it has stopped and the disks are the same before it does."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Disk, MigrationPhase
from hvcore_kvm.events import parse_events

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

GIVEN = {
    "tls": False,
    "max_bandwidth": "32MiB",
    "downtime_limit": "1ms",
    "copy_disks": "all",
    "postcopy": {"after_passes": 1},
}
SIZE = 4 << 20
TOKENS = 1024
PATIENCE = 60.0


@pytest.fixture
def pair(make_pair: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    """Two hosts with one version of QEMU, the installed one if a test does not say which."""
    newer = getattr(request, "param", "installed") == "newer"
    given = {"qemu": request.getfixturevalue("newer_qemu")} if newer else {}
    return make_pair(given, given)


def _busy(pair: Any) -> tuple[Any, Path, bytes]:
    """A guest that dirties memory faster than it can be sent, and writes tokens to its disk."""
    path, content = pair.source.directory / "a.raw", bytes(TOKENS) + os.urandom(SIZE - TOKENS)
    path.write_bytes(content)
    disk = Disk(path=str(path), format="raw", params={"bus": "ide"})
    console = pair.start(security_model="none", disks=[disk])
    console.send(b"d")
    console.expect(b"ok")
    pair.write_tokens(console)
    return console, path, content


def _begin(pair: Any, elsewhere: Any) -> Any:
    policy, findings = hvcore.read_migration_policy(GIVEN)
    assert findings == []
    info = pair.source.driver.migration_info("web1")
    target = elsewhere.accept_instance(info, "127.0.0.1", policy)
    pair.keep("destination")
    pair.source.driver.migrate_instance("web1", target, policy)
    return info


def _writes_on(path: Path) -> None:
    """Return when the guest has written some more tokens to an image."""
    first = struct.unpack_from("<I", path.read_bytes())[0]
    deadline = hvcore.Deadline.after(PATIENCE)
    while struct.unpack_from("<I", path.read_bytes())[0] < first + 10:
        assert not deadline.expired, "the guest writes no tokens"


def _holds(path: Path, content: bytes, token: int) -> None:
    found = path.read_bytes()
    assert struct.unpack_from("<I", found)[0] == token
    assert not any(found[512:TOKENS])
    assert found[TOKENS:] == content[TOKENS:]


@pytest.mark.parametrize("pair", ["installed", "newer"], indirect=True)
def test_it_goes_over_early(pair: Any, elsewhere: Any) -> None:
    """It finds its last token on the other host, and writes none on this one any more."""
    _, here, content = _busy(pair)
    info = _begin(pair, elsewhere)
    # Step by step: each that finds it being sent says so, whatever it does.
    while pair.source.driver.continue_migration("web1", wait=0.0).phase is not MigrationPhase.ACTIVE:
        pass
    # What it writes from now on is not copied before it has stopped: then the mirror is told to end.
    [job] = pair.ask("source", "query-block-jobs")
    pair.ask("source", "block-job-pause", device=job["device"])
    _writes_on(here)
    pair.until(MigrationPhase.POSTCOPY, MigrationPhase.COMPLETED)
    # Nobody runs: here it has gone, and there it has not been let run.
    assert (pair.destination.directory / "a.raw").read_bytes() == here.read_bytes()
    elsewhere.finalize_migration_dst(info, True)
    pair.until(MigrationPhase.COMPLETED)
    elsewhere.finalize_migration_dst(info, True)
    pair.source.driver.finalize_migration_source("web1", True)
    assert pair.running() == ["destination"]
    events = parse_events((pair.directory / "source.events").read_text())
    told = [event.data["status"] for event in events if event.name == "MIGRATION"]
    assert told.index("pre-switchover") < told.index("postcopy-active")
    left = struct.unpack_from("<I", here.read_bytes())[0]
    last = pair.last_token(pair.destination.attach("web1"))
    assert 0 < left <= last
    assert pair.ask("destination", "query-block-exports") == []
    pair.destination.driver.stop_instance("web1", force=True)
    _holds(pair.destination.directory / "a.raw", content, last)
    _holds(here, content, left)


@pytest.mark.parametrize("how", ["cancelled", "destination killed"])
def test_it_comes_back(pair: Any, elsewhere: Any, how: str) -> None:
    """Stopped to go over, with its disks not yet the same: it runs on where it was, with what it had."""
    console, here, content = _busy(pair)
    driver, info = pair.source.driver, _begin(pair, elsewhere)
    pair.until(MigrationPhase.PRE_SWITCHOVER, switch_over=False)
    assert pair.ask("source", "query-status")["running"] is False
    if how == "destination killed":
        pair.kill("destination")
        pair.until(MigrationPhase.FAILED)
        driver.finalize_migration_source("web1", False)
    else:
        assert driver.cancel_migration("web1").phase is MigrationPhase.CANCELLED
    assert pair.running() == ["source"]
    elsewhere.finalize_migration_dst(info, False)
    assert not (pair.destination.directory / "a.raw").exists()
    assert pair.destination.files() == set()
    assert pair.ask("source", "query-jobs") == []
    before = pair.last_token(console)
    pair.write_tokens(console)
    last = pair.last_token(console)
    assert last >= before > 0
    driver.stop_instance("web1", force=True)
    _holds(here, content, last)


def test_what_it_has_written_there_is_kept(pair: Any, elsewhere: Any) -> None:
    """Its host dies when it runs there and is not all there yet: it runs nowhere, and its disk is where it was last."""
    _, here, content = _busy(pair)
    info = _begin(pair, elsewhere)
    pair.until(MigrationPhase.POSTCOPY)
    elsewhere.finalize_migration_dst(info, True)
    there = pair.destination.directory / "a.raw"
    _writes_on(there)
    left = struct.unpack_from("<I", here.read_bytes())[0]
    pair.kill("destination")
    for belief in (False, True):
        with contextlib.suppress(hvcore.HypervisorError):
            pair.source.driver.finalize_migration_source("web1", belief)
        with contextlib.suppress(hvcore.HypervisorError):
            elsewhere.finalize_migration_dst(info, belief)
    elsewhere.recover("web1")
    pair.source.driver.recover("web1")
    assert pair.running() == []
    last = struct.unpack_from("<I", there.read_bytes())[0]
    assert last > left
    _holds(there, content, last)
    _holds(here, content, left)
