"""The guest gives memory back and takes it again; what was reached is said, whoever obeys."""

from __future__ import annotations

from typing import Any

import pytest

import hvcore

pytestmark = pytest.mark.qemu

MIB = 1 << 20


@pytest.mark.linux
def test_a_guest_that_obeys(host: Any, boot: Any) -> None:
    """It has less, and then all of it; its own account and the driver's agree."""
    shell = boot("pc", params={"memory_min": "96MiB", "balloon_deflate_on_oom": False})
    whole = int(shell.run("sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo"))
    for memory in (128, 192):
        found = host.driver.balloon_instance_memory("web1", memory * MIB, timeout=60)
        assert found == hvcore.BalloonResult(requested=memory * MIB, reached=memory * MIB)
        assert host.driver.get_instance_info("web1").memory == memory * MIB
        total = int(shell.run("sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo"))
        # What is in a balloon that only the host deflates the kernel does not count.
        assert total == whole - (192 - memory) * 1024


def test_a_guest_that_does_not(host: Any) -> None:
    """It has what it had, which is no error, and the wait ends by the deadline."""
    host.start(host.instance())
    found = host.driver.balloon_instance_memory("web1", 32 * MIB, timeout=3)
    assert found == hvcore.BalloonResult(requested=32 * MIB, reached=64 * MIB)
    assert host.driver.balloon_instance_memory("web1", 64 * MIB).reached == 64 * MIB


def test_limits(host: Any) -> None:
    """Between memory_min and memory, in whole MiB; everything that is wrong at once."""
    host.driver.start_instance(host.instance(params={"memory_min": "32MiB"}))
    for memory, codes in (
        (31 * MIB, {"out-of-range"}),
        (65 * MIB, {"out-of-range"}),
        (65 * MIB + 1, {"out-of-range", "invalid-value"}),
        (40 * MIB + 4096, {"invalid-value"}),
        ("40MiB", {"invalid-value"}),
        (-1, {"invalid-value"}),
    ):
        with pytest.raises(hvcore.InvalidParameters) as raised:
            host.driver.balloon_instance_memory("web1", memory)
        assert set(raised.value.findings.codes) == codes
        assert {finding.path for finding in raised.value.findings} == {"memory"}
    with pytest.raises(hvcore.InvalidParameters, match=r"params\.memory_min 32MiB and memory 64MiB"):
        host.driver.balloon_instance_memory("web1", 8 * MIB)


def test_without_a_balloon(host: Any) -> None:
    """There is nothing to ask; the error says what to set."""
    host.driver.start_instance(host.instance(params={"balloon": False}))
    with pytest.raises(hvcore.UnsupportedOperation, match=r"params\.balloon = true"):
        host.driver.balloon_instance_memory("web1", 32 * MIB)
    host.driver.stop_instance("web1", force=True)
    with pytest.raises(hvcore.NotRunning):
        host.driver.balloon_instance_memory("web1", 32 * MIB)
