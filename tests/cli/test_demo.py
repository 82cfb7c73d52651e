"""``hv demo`` for real: on Linux, on the firmware guest, on the model, and interrupted."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvcore.guests import build_linux_guest

Hv = Callable[..., Any]


@pytest.fixture(scope="session")
def guest_cache() -> str:
    """Where the Linux guest is, built once and kept between sessions."""
    cache = os.environ.get("HVCORE_TEST_CACHE") or str(Path.home() / ".cache" / "hvcore" / "guests")
    build_linux_guest(Path(cache) / "linux")
    return cache


def nothing_left(tmp_path: Path) -> bool:
    """Whether the demo has removed everything it made."""
    return list((tmp_path / "temporary").iterdir()) == [] and not (tmp_path / "hv").exists()


@pytest.mark.qemu
@pytest.mark.linux
def test_a_linux_guest_lives_its_whole_life(hv: Hv, guest_cache: str, tmp_path: Path) -> None:
    """It boots, is paused, answers on its shell, moves, is rebooted and stopped, and nothing of it is left."""
    done = hv("demo", "--guest-cache", guest_cache)
    assert done.returncode == 0, done.stdout + done.stderr
    # On a slow host the kernel has more to say than is shown before the guest is ready.
    told = (
        "accelerator ",
        "the guest is up",
        "said nothing for 1 s",
        "│ awake",
        "load average",
        "it runs there",
        "host-stop",
    )
    assert [text for text in told if text not in done.stdout] == []
    assert done.stdout.count("│ awake") == 2
    assert done.stdout.count("has ended") == 3
    assert done.stderr == ""
    assert nothing_left(tmp_path)


@pytest.mark.qemu
def test_without_packages_the_firmware_guest_is_shown(hv: Hv, environment: dict[str, str], tmp_path: Path) -> None:
    """Where the Linux guest cannot be built, it says why and goes on with the guest that ships with hvcore."""
    poor = {**environment, "PATH": str(tmp_path), "HV_GUEST_CACHE": str(tmp_path / "cache")}
    done = hv("demo", env=poor)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✗ " in done.stdout
    assert "HVCORE-GUEST ready firmware" in done.stdout
    assert nothing_left(tmp_path)


def test_without_qemu_the_story_is_told_on_the_model(hv: Hv, tmp_path: Path) -> None:
    """Where QEMU is missing, it says so and uses the fake driver."""
    done = hv("demo", "--setting", "qemu=/none")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/none" in done.stdout
    assert "on a model" in done.stdout
    assert nothing_left(tmp_path)


def test_a_driver_that_was_named_is_not_replaced(hv: Hv, tmp_path: Path) -> None:
    """Who names a driver wants to see that one."""
    done = hv("demo", "--driver", "kvm", "--setting", "qemu=/none")
    assert done.returncode == 1
    assert "cannot work on this host" in done.stdout
    assert nothing_left(tmp_path)


@pytest.mark.qemu
def test_an_interrupted_demo_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    """A signal in the middle ends the instance and removes the directories."""
    command = [sys.executable, "-m", "hvcore.cli", "demo", "--guest", "firmware"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        pid = None
        for line in process.stdout:
            if " in process " in line:
                pid = os.pidfd_open(int(line.split()[-1]))
            if "it is paused" in line:
                break
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert pid is not None
    assert select.select([pid], [], [], 0)[0], "its process still lives"
    os.close(pid)
    assert nothing_left(tmp_path)
