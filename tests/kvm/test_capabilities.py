"""What a QEMU program can do: asked once, cached, asked again when the program changes."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hvcore import Deadline, DeadlineExceeded
from hvcore_kvm import capabilities
from hvcore_kvm.capabilities import MINIMUM_VERSION, capabilities_of, qemu_words

pytestmark = pytest.mark.qemu


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A QEMU of our own that counts how often it is started."""
    path = tmp_path / "qemu"
    path.write_text(f'#!/bin/sh\necho >> {tmp_path}/starts\nexec {shutil.which("qemu-system-x86_64")} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def fresh(mocker: Any) -> None:
    mocker.patch.dict(capabilities._KNOWN, clear=True)


def _asked(tmp_path: Path) -> int:
    """How often the program was asked: each time over its monitor, and for its audio drivers."""
    return len((tmp_path / "starts").read_text().splitlines()) // 2


def test_the_program_is_asked_once(program: Path, tmp_path: Path, mocker: Any) -> None:
    """A second question is answered from memory, and one of another process from the cache on disk."""
    first = capabilities_of(str(program), str(tmp_path / "cache"), Deadline.after(30))
    assert first.version >= MINIMUM_VERSION
    assert {"pc", "q35"} <= {machine.alias for machine in first.machines}
    assert "virtio-blk-pci" in first.devices
    assert "qemu64" in first.cpu_models
    assert capabilities_of(str(program), str(tmp_path / "cache"), Deadline.after(30)) is first
    mocker.patch.dict(capabilities._KNOWN, clear=True)
    assert capabilities_of(str(program), str(tmp_path / "cache"), Deadline.after(30)) == first
    assert _asked(tmp_path) == 1


def test_a_changed_program_is_asked_again(program: Path, tmp_path: Path) -> None:
    """Another size or time of modification means another program."""
    capabilities_of(str(program), str(tmp_path / "cache"), Deadline.after(30))
    program.write_text(program.read_text() + "\n")
    capabilities_of(str(program), str(tmp_path / "cache"), Deadline.after(30))
    assert _asked(tmp_path) == 2


@pytest.mark.parametrize("damage", ["", "{", '{"schema": 1}', '{"schema": 99}', "\0"])
def test_a_damaged_cache_only_costs_time(program: Path, tmp_path: Path, mocker: Any, damage: str) -> None:
    """A cache that cannot be read is made again."""
    capabilities_of(str(program), str(tmp_path / "cache"), Deadline.after(30))
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(damage)
    mocker.patch.dict(capabilities._KNOWN, clear=True)
    assert capabilities_of(str(program), str(tmp_path / "cache"), Deadline.after(30)).version >= MINIMUM_VERSION


def test_an_unusable_cache_only_costs_time(program: Path, tmp_path: Path) -> None:
    """Without a place for the cache the program is asked all the same."""
    (tmp_path / "file").write_text("")
    found = capabilities_of(str(program), str(tmp_path / "file" / "cache"), Deadline.after(30))
    assert found.version >= MINIMUM_VERSION


def test_warnings_are_not_the_reason() -> None:
    """From what QEMU printed, warnings are left out where there is anything else."""
    said = "qemu-system-x86_64: warning: host doesn't support\nqemu-system-x86_64: -bios x: could not load\n"
    assert qemu_words(said) == "-bios x: could not load"
    assert qemu_words("qemu-system-x86_64: warning: only this\n") == "warning: only this"
    assert qemu_words("") == ""


def test_the_features_a_cpu_model_lacks_are_named() -> None:
    """QEMU names them in warnings, and refuses in a line that does not."""
    output = (
        "qemu-system-x86_64: warning: TCG doesn't support requested feature: CPUID.01H:ECX.pcid [bit 17]\n"
        "qemu-system-x86_64: warning: TCG doesn't support requested feature: CPUID.07H:EBX.invpcid [bit 10]\n"
        "qemu-system-x86_64: TCG doesn't support requested features\n"
    )
    words = qemu_words(output)
    assert words.startswith("TCG doesn't support requested features; ")
    assert "pcid [bit 17]" in words
    assert "invpcid [bit 10]" in words


_KILLED = """
import os, signal, sys
from hvcore import Deadline, DeadlineExceeded
from hvcore_kvm import capabilities, process
assert capabilities._LIMITED[0].endswith("timeout")
capabilities._LIMITED = (*capabilities._LIMITED[:-1], "1")
spawn = process.spawn
def spawned(*args):
    print(spawn(*args), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
process.spawn = spawned
capabilities.capabilities_of(sys.argv[1], sys.argv[2], Deadline.after(20))
"""


def test_a_program_that_is_asked_ends_when_the_host_application_was_killed(tmp_path: Path) -> None:
    """Nobody would ever end it: it has no guest, and its socket's end means nothing to it."""
    qemu = shutil.which("qemu-system-x86_64")
    command = [sys.executable, "-c", _KILLED, str(qemu), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -9, done.stderr
    try:
        fd = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return  # it has ended and been reaped
    try:
        assert select.select([fd], [], [], 30)[0], "it stays"
    finally:
        os.close(fd)


def test_there_was_no_time_to_ask(program: Path, tmp_path: Path) -> None:
    """That says nothing of the program, and nothing is kept of it."""
    with pytest.raises(DeadlineExceeded):
        capabilities_of(str(program), str(tmp_path / "cache"), Deadline.after(0.001))
    assert capabilities_of(str(program), str(tmp_path / "cache"), Deadline.after(30)).version >= MINIMUM_VERSION
