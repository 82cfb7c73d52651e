"""How the Linux guest is built: the archive, the cache, and failures."""

from __future__ import annotations

import json
import lzma
import os
import stat
import threading
from pathlib import Path

import pytest

from hvcore import guests
from hvcore.guests import cpio
from hvcore.guests.commands import run_command


def fake_tools(directory: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> Path:
    """Make a directory of shell scripts the only tools there are, besides the basic ones."""
    tools = directory / "tools"
    tools.mkdir()
    for name, text in scripts.items():
        file = tools / name.replace("_", "-")
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    return tools


def module(depends: str) -> str:
    """Return a printf format of something with the module information that matters."""
    return f"\\000license=GPL\\000depends={depends}\\000"


def compressed_module(depends: str) -> str:
    """Return a printf format of the same as a release with compressed modules has it."""
    data = lzma.compress(f"\0license=GPL\0depends={depends}\0".encode())
    return "".join(f"\\{byte:03o}" for byte in data)


# The packages of a release with two virtio modules that has its nvme driver built in.
CACHE = "echo linux-image-cloud-amd64; echo '  Depends: linux-image-9.9-cloud-amd64'"
APT = 'echo "$@" >>"$LOG"; case "$*" in *download*) : >busybox-static_1.deb; : >linux-image_9.9.deb;; esac'
UNPACK = f"""
case $2 in
*busybox*) mkdir -p "$3/usr/bin"; echo busybox >"$3/usr/bin/busybox";;
*) mkdir -p "$3/boot" "$3/usr/lib/modules/9.9/kernel"; echo kernel >"$3/boot/vmlinuz-9.9-cloud-amd64"
   cd "$3/usr/lib/modules/9.9"
   printf '{module("virtio-pci,virtio")}' >kernel/virtio_net.ko
   printf '{compressed_module("virtio")}' >kernel/virtio-pci.ko.xz
   printf '{module("")}' >kernel/virtio.ko
   echo kernel/drivers/nvme/host/nvme.ko >modules.builtin;;
esac
"""


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of each member of a newc archive, in order."""
    result: dict[str, tuple[int, bytes]] = {}
    position = 0
    while True:
        head = archive[position : position + 110]
        assert head[:6] == b"070701"
        fields = [int(head[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        assert fields[2:4] == [0, 0]
        assert fields[5] == 0
        name = archive[position + 110 : position + 110 + fields[11] - 1].decode()
        start = (position + 110 + fields[11] + 3) & ~3
        if name == "TRAILER!!!":
            return result
        result[name] = (fields[1], archive[start : start + fields[6]])
        position = (start + fields[6] + 3) & ~3


def test_archive_is_sorted_and_complete() -> None:
    """Members come sorted, directories first, with missing parents added, whatever the order given."""
    entries = [
        cpio.cpio_file("a/b/file", b"12345", 0o600),
        cpio.cpio_file("a-file", b""),
        cpio.cpio_directory("a"),
        cpio.cpio_character_device("dev/console", 5, 1),
    ]
    archive = cpio.cpio_archive(entries)
    assert archive == cpio.cpio_archive(reversed(entries))
    assert len(archive) % 512 == 0
    found = members(archive)
    assert list(found) == ["a", "a/b", "a/b/file", "a-file", "dev", "dev/console"]
    assert found["a/b/file"] == (stat.S_IFREG | 0o600, b"12345")
    assert stat.S_ISDIR(found["a/b"][0])
    assert stat.S_ISCHR(found["dev/console"][0])


@pytest.mark.parametrize("path", ["", "/etc", "a//b", "../a", "a/.", "TRAILER!!!"])
def test_archive_refuses_bad_names(path: str) -> None:
    """Names that a kernel would put elsewhere are refused."""
    with pytest.raises(ValueError, match="not a name"):
        cpio.cpio_archive([cpio.cpio_file(path, b"")])


def test_archive_refuses_a_name_twice() -> None:
    """One name for two members is refused."""
    with pytest.raises(ValueError, match="twice"):
        cpio.cpio_archive([cpio.cpio_file("a", b"1"), cpio.cpio_directory("a")])


def test_builds_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call takes the finished guest without any tool; a damaged or outdated guest is rebuilt."""
    log = tmp_path / "log"
    monkeypatch.setenv("LOG", str(log))
    tools = fake_tools(tmp_path, monkeypatch, apt_cache=CACHE, apt_get=APT, dpkg_deb=UNPACK)
    lines: list[str] = []
    guest = guests.build_linux_guest(tmp_path / "guest", progress=lines.append)
    assert guest.version == "9.9-cloud-amd64"
    assert guest.kernel.read_text() == "kernel\n"
    assert "this kernel has no module ahci, the guest goes without it" in lines
    assert not any("nvme" in line for line in lines)
    assert not list((tmp_path / "guest").glob(".build-*"))
    downloads = log.read_text()

    hidden = tmp_path / "hidden"
    tools.rename(hidden)
    assert guests.build_linux_guest(tmp_path / "guest") == guest
    assert log.read_text() == downloads
    hidden.rename(tools)

    content = guest.initrd.read_bytes()
    guest.initrd.write_bytes(b"")
    assert guests.build_linux_guest(tmp_path / "guest") == guest
    assert guest.initrd.read_bytes() == content

    stamp_file = tmp_path / "guest" / "guest.json"
    stamp = json.loads(stamp_file.read_text())
    stamp_file.write_text(json.dumps({**stamp, "init_sha256": "old"}))
    assert guests.build_linux_guest(tmp_path / "guest") == guest
    assert json.loads(stamp_file.read_text()) == stamp
    stamp_file.write_text("{")
    assert guests.build_linux_guest(tmp_path / "guest") == guest


def test_modules_are_in_load_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each module comes after what it depends on, unpacked, under its name with underscores."""
    monkeypatch.setenv("LOG", os.devnull)
    fake_tools(tmp_path, monkeypatch, apt_cache=CACHE, apt_get=APT, dpkg_deb=UNPACK)
    guest = guests.build_linux_guest(tmp_path / "guest")
    packed = run_command(["gzip", "-dc", str(guest.initrd)], cwd=tmp_path, timeout=60, what="gzip", hint="")
    found = members(packed.encode())
    assert found["etc/modules"][1].split() == [b"virtio", b"virtio_pci", b"virtio_net"]
    assert b"depends=virtio\0" in found["modules/virtio_pci.ko"][1]
    assert found["init"][0] == stat.S_IFREG | 0o755
    assert found["bin/busybox"][1] == b"busybox\n"


def test_parallel_builders_share_one_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Builders of one directory at the same time all get the guest of a single build."""
    log = tmp_path / "log"
    monkeypatch.setenv("LOG", str(log))
    fake_tools(tmp_path, monkeypatch, apt_cache=CACHE, apt_get=APT, dpkg_deb=UNPACK)
    results: list[guests.LinuxGuest] = []
    threads = [
        threading.Thread(target=lambda: results.append(guests.build_linux_guest(tmp_path / "guest"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert log.read_text().count("download") == 1


def test_root_renews_missing_package_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without package lists root updates them and goes on."""
    log = tmp_path / "log"
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    no_lists = f"grep -q update {log} 2>/dev/null || {{ echo 'E: No packages found' >&2; exit 100; }}; {CACHE}"
    fake_tools(tmp_path, monkeypatch, apt_cache=no_lists, apt_get=APT, dpkg_deb=UNPACK)
    assert guests.build_linux_guest(tmp_path / "guest").version == "9.9-cloud-amd64"
    assert [line.split()[-1] for line in log.read_text().splitlines()] == ["update", "busybox-static"]


def test_user_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user gets the command, its last words and what to do, and nothing half-built stays."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    fake_tools(tmp_path, monkeypatch, apt_cache="echo 'E: No packages found' >&2; exit 100")
    with pytest.raises(guests.GuestBuildError) as caught:
        guests.build_linux_guest(tmp_path / "guest")
    assert caught.value.command == ("apt-cache", "depends", "linux-image-cloud-amd64")
    assert "E: No packages found" in str(caught.value)
    assert "apt-get update" in caught.value.hint
    assert [file.name for file in (tmp_path / "guest").iterdir()] == [".lock"]


def test_missing_tools_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without apt the error says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(guests.GuestBuildError, match="apt-cache"):
        guests.build_linux_guest(tmp_path / "guest")


def test_directory_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    """A file where the directory should be is an error with a hint."""
    (tmp_path / "guest").write_text("")
    with pytest.raises(guests.GuestBuildError, match="give a directory"):
        guests.build_linux_guest(tmp_path / "guest")


def test_command_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    """A command past its deadline ends together with its children, and its last words are kept."""
    with pytest.raises(guests.GuestBuildError, match="never mind") as caught:
        run_command(
            ["sh", "-c", "echo waiting; sleep 1000 & wait"],
            cwd=tmp_path,
            timeout=3,
            what="it took too long",
            hint="never mind",
        )
    assert caught.value.last_words == "waiting"
