"""The host application is killed in the middle of a backup: it is complete afterwards, or there is nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvcore import InstanceState

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

BACKUP = "driver.backup_instance('web1', words[0], since='a', checkpoint='b')"

STRIDE = 11
"""Not every cut is tried: each takes half a second."""


def test_killed_in_the_middle(host: Any, cut_short: Any, written: Callable[..., Any], place: Path) -> None:
    """After each cut recovery leaves all files and the checkpoint, or none; the guest runs, and nothing is lost."""
    web = written(host.qcow2_disk(), host.raw_disk(size=8 << 20))
    host.driver.backup_instance("web1", str(place), checkpoint="a")
    before = set(os.listdir(place))
    cut, finished, outcomes = 1, None, set()
    while finished is None:
        web.scribble(cut, 2)
        finished = cut_short(BACKUP, str(place), cut=cut)
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


def test_stopped_without_recovery(host: Any, cut_short: Any, written: Callable[..., Any], place: Path) -> None:
    """A stop removes what a killed backup has left of files; nothing of it is in the image."""
    web = written(host.qcow2_disk())
    host.driver.backup_instance("web1", str(place), checkpoint="a")
    before = set(os.listdir(place))
    cut = 20
    while set(os.listdir(place)) == before:
        host.driver.recover()
        assert cut_short(BACKUP, str(place), cut=cut) is None
        cut += 5
    host.driver.stop_instance("web1", force=True)
    assert set(os.listdir(place)) == before
    host.start(host.instance(disks=list(web.disks)))
    assert [found.name for found in host.driver.list_checkpoints("web1").checkpoints] == ["a"]
