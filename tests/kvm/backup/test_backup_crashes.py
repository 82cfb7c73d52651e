"""The host application is killed in the middle of a backup: it is complete afterwards, or there is nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvcore import InstanceState

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

# Kills itself at the n-th thing it does to the host or to QEMU; prints how many there were when it gets to the end.
_APPLICATION = """
import json, os, signal, sys
import hvcore
settings, target, cut = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
driver = hvcore.load_driver("kvm", settings)
seen = 0

def count(*_):
    global seen
    seen += 1
    if seen == cut:
        os.kill(os.getpid(), signal.SIGKILL)

def watch(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.rename", "os.remove", "os.link"):
        count()

from hvcore_kvm.qmp import client
send = client.QmpClient._send
def sending(self, data, *args):
    send(self, data, *args)
    if b"query-jobs" not in data:
        count()
client.QmpClient._send = sending
sys.addaudithook(watch)
driver.backup_instance("web1", target, since="a", checkpoint="b")
print(seen)
"""

STRIDE = 5
"""Not every cut is tried: each takes half a second."""


def _crash(host: Any, target: Path, cut: int) -> int | None:
    """Back up in a host application that is killed at a cut; returns the number of cuts if it was not."""
    command = [sys.executable, "-c", _APPLICATION, json.dumps(host.settings), str(target), str(cut)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == -9:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_killed_in_the_middle(host: Any, written: Callable[..., Any], place: Path) -> None:
    """After each cut recovery leaves all files and the checkpoint, or none; the guest runs, and nothing is lost."""
    web = written(host.qcow2_disk(), host.raw_disk(size=8 << 20))
    host.driver.backup_instance("web1", str(place), checkpoint="a")
    before = set(os.listdir(place))
    cut, finished, outcomes = 1, None, set()
    while finished is None:
        web.scribble(cut, 2)
        finished = _crash(host, place, cut)
        rows = host.driver.recover().instances
        outcomes |= {row.outcome for row in rows}
        assert {row.operation for row in rows} <= {"backup"}, f"cut {cut}: {rows}"
        made = set(os.listdir(place)) - before
        names = [found.name for found in host.driver.list_checkpoints("web1").checkpoints]
        assert (len(made), names) in ((2, ["a", "b"]), (0, ["a"])), f"cut {cut}: {rows}, {made}"
        web.nothing_left()
        assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING, f"cut {cut}"
        if made:
            host.driver.delete_checkpoint("web1", "b")
        for name in made:
            index = next(index for index, uuid in enumerate(web.uuids()) if uuid in name)
            assert web.whole(place / name) == web.content[index], f"cut {cut}"
            os.unlink(place / name)
        cut += STRIDE
    assert outcomes >= {"undone"}
    assert finished > 30
    taken = host.driver.backup_instance("web1", str(place), since="a")
    for index, disk in enumerate(taken.disks):
        assert web.whole(disk.location) == web.content[index]


def test_stopped_without_recovery(host: Any, written: Callable[..., Any], place: Path) -> None:
    """A stop removes what a killed backup has left of files; nothing of it is in the image."""
    web = written(host.qcow2_disk())
    host.driver.backup_instance("web1", str(place), checkpoint="a")
    before = set(os.listdir(place))
    assert _crash(host, place, 25) is None
    assert set(os.listdir(place)) > before
    host.driver.stop_instance("web1", force=True)
    assert set(os.listdir(place)) == before
    host.start(host.instance(disks=list(web.disks)))
    assert [found.name for found in host.driver.list_checkpoints("web1").checkpoints] == ["a"]
