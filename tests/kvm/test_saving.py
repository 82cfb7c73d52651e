"""An instance goes into a file and comes out of it as what it was; whatever is wrong with the file is said first."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Cause, InstanceState, OperationFailed, RecordError, WrongState
from hvcore.guests import FIRMWARE_PATTERN_SUM, FIRMWARE_READY_MARKER

pytestmark = pytest.mark.qemu

_LACKING = [path for path in ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/bin/swtpm") if not os.path.exists(path)]
_ROOT_TOOLS = os.geteuid() == 0 and all(map(shutil.which, ("setpriv", "prlimit")))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "web1.saved")


def _count(console: Any) -> int:
    console.send(b"c")
    before = console.expect(b"count=")
    assert FIRMWARE_READY_MARKER not in before
    return int(console.expect(b"\r\n"), 16)


def _answers(console: Any) -> None:
    console.send(b"e")
    console.expect(b"ok\r\n")


def _restored(host: Any, path: str) -> Any:
    """Restore it paused, attach, and let it run on."""
    assert host.driver.restore_instance(path, paused=True).after is InstanceState.PAUSED
    console = host.attach("web1")
    host.driver.resume_instance("web1")
    return console


@pytest.mark.parametrize(
    ("accel", "machine", "compression"), [("tcg", "pc", "none"), ("kvm", "q35", "zlib"), ("tcg", "q35", "none")]
)
def test_a_guest_goes_on(make_host: Callable[..., Any], path: str, accel: str, machine: str, compression: str) -> None:
    """Its clock and its memory are what they were; it has not begun anew, and its disks and NIC are there."""
    host = make_host(save_compression=compression)
    disks = [host.qcow2_disk(), host.raw_disk()]
    console = host.start(host.instance(accel=accel, disks=disks, nics=[hvcore.Nic()], params={"machine": machine}))
    count = _count(console)
    saved = host.driver.save_instance("web1", path)
    assert (saved.size, os.stat(path).st_mode & 0o777) == (os.stat(path).st_size, 0o600)
    info = host.driver.get_instance_info("web1")
    assert (info.state, info.reason.cause, info.pid) == (InstanceState.SAVED, Cause.HOST_SAVE, None)
    assert path in info.reason.detail
    assert [file for file in host.files() if file.startswith("state")] == []
    console = _restored(host, path)
    assert _count(console) >= count
    console.send(b"m")
    console.expect(b"sum=%08X\r\n" % FIRMWARE_PATTERN_SUM)
    assert {device.kind for device in host.driver.get_instance_info("web1").devices} == {"disk", "nic"}


def test_what_was_plugged_and_what_is_beside_it(host: Any, path: str) -> None:
    """Devices that came later are at their places, and firmware, TPM and balloon arrive with the guest."""
    params = {"machine": "q35", "memory_min": "64MiB"}
    if not _LACKING:
        params |= {"firmware": "uefi", "tpm": "crb"}
    definition = host.instance(memory="128MiB", params=params)
    if not _LACKING:
        kept = {key: value for key, value in definition.params.items() if key != "firmware_image"}
        definition = attrs.evolve(definition, params=kept)
    host.driver.start_instance(definition)
    assert host.driver.hot_add_device("web1", host.raw_disk()).done
    assert host.driver.hot_add_device("web1", hvcore.Nic()).done
    host.driver.save_instance("web1", path)
    assert host.driver.restore_instance(path).after is InstanceState.RUNNING
    assert [device.kind for device in host.driver.get_instance_info("web1").devices] == ["disk", "nic"]
    assert host.driver.verify_instance("web1").codes == ()


def test_one_that_has_not_begun_begins_afterwards(host: Any, path: str) -> None:
    """A guest saved before its first instruction executes it after the restore and the resume, and not before."""
    host.driver.start_instance(host.instance(), paused=True)
    host.driver.save_instance("web1", path)
    assert host.driver.restore_instance(path).after is InstanceState.PRELAUNCH
    assert host.driver.get_instance_info("web1").state is InstanceState.PRELAUNCH
    console = host.attach("web1")
    host.driver.resume_instance("web1")
    console.expect(FIRMWARE_READY_MARKER)


def test_it_can_be_saved_again(host: Any, path: str) -> None:
    """One life after the other, each in a file of its own; only the last can be restored."""
    host.start(host.instance())
    host.driver.save_instance("web1", path)
    host.driver.restore_instance(path)
    host.driver.save_instance("web1", f"{path}2")
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.restore_instance(path)
    assert caught.value.findings.codes == ("restored-before",)
    shutil.copy(f"{path}2", f"{path}3")
    _answers(_restored(host, f"{path}2"))
    host.driver.stop_instance("web1", force=True)
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.restore_instance(f"{path}3")
    assert caught.value.findings.codes == ("ran-since",)


class _Newcomer:
    """Makes a file where another is about to be, as soon as that is being written."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def __call__(self, progress: hvcore.Progress) -> None:
        self._path.write_text("precious")


@pytest.mark.parametrize("paused", [False, True])
def test_a_file_that_comes_in_between_stays(host: Any, path: str, paused: bool) -> None:
    """The save fails at its very end and is undone: the guest is what it was, and so is the other's file."""
    console = host.start(host.instance())
    if paused:
        host.driver.pause_instance("web1")
    before = set(os.listdir(host.directory))
    with pytest.raises(OperationFailed, match="File exists"):
        host.driver.save_instance("web1", path, on_progress=_Newcomer(path))
    assert set(os.listdir(host.directory)) - before == {os.path.basename(path)}
    assert Path(path).read_text() == "precious"
    state = InstanceState.PAUSED if paused else InstanceState.RUNNING
    assert host.driver.get_instance_info("web1").state is state
    if paused:
        assert not host.driver.pause_instance("web1").changed
        host.driver.resume_instance("web1")
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING
    _answers(console)


@contextlib.contextmanager
def _no_file_above(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_for_the_file(host: Any, path: str) -> None:
    """The kernel's word is in the error, the guest runs on, and no file is left."""
    console = host.start(host.instance())
    before = set(os.listdir(host.directory))
    with pytest.raises(OperationFailed, match="File too large") as caught, _no_file_above(200_000):
        host.driver.save_instance("web1", path)
    assert caught.value.code == "file-not-written"
    assert set(os.listdir(host.directory)) == before
    _answers(console)
    host.driver.save_instance("web1", path)


def test_who_is_interrupted_undoes_it(host: Any, path: str) -> None:
    """As with Ctrl-C: the guest runs on, and no file is left."""

    def interrupt(progress: hvcore.Progress) -> None:
        raise KeyboardInterrupt

    console = host.start(host.instance())
    before = set(os.listdir(host.directory))
    with pytest.raises(KeyboardInterrupt):
        host.driver.save_instance("web1", path, on_progress=interrupt)
    assert set(os.listdir(host.directory)) == before
    assert host.driver.recover().instances == ()
    _answers(console)


@pytest.mark.parametrize("kind", [KeyboardInterrupt(), OSError(errno.EIO, "it broke")], ids=["interrupt", "error"])
def test_it_ends_when_the_file_has_its_name(
    host: Any, path: str, monkeypatch: pytest.MonkeyPatch, kind: BaseException
) -> None:
    """A guest that goes on has no file that says it had ended: recovery would end it."""

    def fail(_: str) -> None:
        raise kind

    console = host.start(host.instance())
    before = set(os.listdir(host.directory))
    with monkeypatch.context() as patch:
        patch.setattr("hvcore_kvm.saving.part.sync_directory", fail)
        with pytest.raises((KeyboardInterrupt, OperationFailed)):
            host.driver.save_instance("web1", path)
    assert set(os.listdir(host.directory)) == before
    assert host.driver.recover("web1").instances == ()
    _answers(console)


def test_who_is_interrupted_too_late_hears_of_it(host: Any, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From when the file is whole it is saved: that is said, and recovery ends what is left of it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    host.start(host.instance())
    with monkeypatch.context() as patch:
        patch.setattr("hvcore_kvm.lifecycle.Control.end_saved", interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            host.driver.save_instance("web1", path)
    assert f"saved all the same, to {path}" in caught.value.__notes__[0]
    [found] = host.driver.recover("web1").instances
    assert (found.operation, found.outcome) == ("save", "completed")
    _answers(_restored(host, path))


def test_qemu_dies_while_it_is_saved(host: Any, path: str) -> None:
    """It is said, no file is left, and the instance is what it is after any such death."""
    host.start(host.instance())
    pid, before = host.pid(), set(os.listdir(host.directory))
    with pytest.raises(OperationFailed, match="QEMU has ended"):
        host.driver.save_instance("web1", path, on_progress=lambda _: os.kill(pid, signal.SIGKILL))
    assert set(os.listdir(host.directory)) == before
    info = host.driver.get_instance_info("web1")
    assert (info.state, info.reason.cause) == (InstanceState.CRASHED, Cause.DIED)
    host.driver.start_instance(host.instance())


def test_what_cannot_be_saved(host: Any, path: str, tmp_path: Path) -> None:
    """A path of no use, a guest in no state for it: refused before anything is touched."""
    console = host.start(host.instance(params={"on_panic": "pause"}))
    for wrong in (
        "",
        "relative",
        "/",
        f"{path}\n",
        str(tmp_path),
        str(tmp_path / "no" / "saved"),
        f"{path}{'x' * 300}",
    ):
        with pytest.raises(hvcore.InvalidParameters):
            host.driver.save_instance("web1", wrong)
    os.symlink("/nowhere", path)
    with pytest.raises(hvcore.InvalidParameters):
        host.driver.save_instance("web1", path)
    os.unlink(path)
    _answers(console)
    console.send(b"p")
    wait = hvcore.Deadline.after(30)
    while host.driver.get_instance_info("web1").state is not InstanceState.PANICKED:
        assert not wait.expired
    with pytest.raises(WrongState, match="guest-panicked"):
        host.driver.save_instance("web1", path)


_LEAD = struct.Struct(">16sIIQ32s")


def _reheaded(whole: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The same file with another header, whose checksum is right."""
    magic, version, length, restored, _ = _LEAD.unpack(whole[:64])
    header = json.loads(whole[64 : 64 + length])
    change(header)
    data = json.dumps(header).encode().ljust(length)
    assert len(data) == length
    lead = _LEAD.pack(magic, version, length, restored, hashlib.sha256(data).digest())
    return lead + data + whole[64 + length :]


def _wrong_in_three_places(header: dict[str, Any]) -> None:
    header["state"] = "dreaming"
    header["record"]["instance"]["memory"] = "lots"
    header["stream"]["size"] = -1


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "foreign": (lambda whole: b"QFI\xfb" + whole[4:], "is not the file of a saved instance"),
    "empty": (lambda whole: b"", "is not the file of a saved instance"),
    "incomplete": (lambda whole: bytes(64) + whole[64:], "was never completed"),
    "line ends changed": (lambda whole: whole.replace(b"\r\n", b"\n", 1), "is not the file of a saved instance"),
    "future": (lambda whole: whole[:16] + struct.pack(">I", 2) + whole[20:], "has format 2, this version reads 1"),
    "huge header": (lambda whole: whole[:20] + b"\xff\xff\xff\xff" + whole[24:], "claims a header of 4294967295"),
    "cut in the header": (lambda whole: whole[:1000], "ends within its header"),
    "header changed": (lambda whole: whole[:100] + b"!" + whole[101:], "header that does not have its checksum"),
    "not JSON": (lambda whole: _LEAD.pack(whole[:16], 1, 4, 0, hashlib.sha256(b"nope").digest()) + b"nope", "not JSON"),
    "deep": (
        lambda whole: _LEAD.pack(whole[:16], 1, 10**5, 0, hashlib.sha256(b"[" * 10**5).digest()) + b"[" * 10**5,
        "not JSON",
    ),
    "schema": (lambda whole: _reheaded(whole, _wrong_in_three_places), r"state: .*\n.*memory: .*\n.*stream.size: "),
    "cut in the stream": (lambda whole: whole[:-1], "bytes long, not"),
    "longer": (lambda whole: whole + b"x", "bytes long, not"),
    "stream changed": (lambda whole: whole[:-9] + b"?" + whole[-8:], "the saved memory does not have its checksum"),
}


def test_a_damaged_file(host: Any, path: str) -> None:
    """Whatever is wrong with it is said, nothing is started, and what it was saved as stays."""
    host.start(host.instance())
    host.driver.save_instance("web1", path)
    whole, before = Path(path).read_bytes(), host.files()
    broken = f"{path}.broken"
    for what, (change, words) in DAMAGED.items():
        Path(broken).write_bytes(change(whole))
        with pytest.raises(RecordError) as caught:
            host.driver.restore_instance(broken)
        assert re.search(words, str(caught.value), re.DOTALL), what
        assert host.files() == before, what
        assert host.driver.get_instance_info("web1").state is InstanceState.SAVED
    os.unlink(broken)
    os.mkfifo(broken)
    for nothing in (broken, str(host.directory), f"{path}.missing"):
        with pytest.raises(RecordError):
            host.driver.restore_instance(nothing)
    _answers(_restored(host, path))


def test_a_stream_that_qemu_cannot_read(host: Any, path: str) -> None:
    """A file whose checksums are right and whose stream is nonsense: QEMU's own words, and the instance stays saved."""
    host.start(host.instance())
    host.driver.save_instance("web1", path)
    whole = Path(path).read_bytes()
    _, _, length, _, _ = _LEAD.unpack(whole[:64])
    stream = whole[64 + length :]
    bad = b"nope" + stream[4:]

    def change(header: dict[str, Any]) -> None:
        header["stream"]["sha256"] = hashlib.sha256(bad).hexdigest()

    broken = f"{path}.broken"
    Path(broken).write_bytes(_reheaded(whole[: 64 + length] + bad, change))
    with pytest.raises(hvcore.SpawnFailed, match="Not a migration stream"):
        host.driver.restore_instance(broken)
    assert host.driver.get_instance_info("web1").state is InstanceState.SAVED
    _answers(_restored(host, path))


def test_all_that_stands_against_it_at_once(host: Any, path: str) -> None:
    """A disk that was written and one that is not there are both named; 'force' helps with the first."""
    disks = [host.raw_disk("a.raw"), host.raw_disk("b.raw"), host.raw_disk("c.raw")]
    host.start(host.instance(disks=disks))
    host.driver.save_instance("web1", path)
    os.unlink(disks[0].path)
    Path(disks[1].path).write_bytes(bytes(512))
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.restore_instance(path)
    assert [(finding.code, finding.path) for finding in caught.value.findings] == [
        ("disk-missing", "disks[0].path"),
        ("disk-changed", "disks[1].path"),
    ]
    host.raw_disk("a.raw")
    with pytest.raises(hvcore.InvalidParameters) as caught:
        host.driver.restore_instance(path)
    assert caught.value.findings.codes == ("disk-changed", "disk-changed")
    assert host.driver.get_instance_info("web1").state is InstanceState.SAVED
    host.raw_disk("b.raw")
    host.driver.restore_instance(path, force=True)
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING


def test_it_takes_the_lock_of_the_instance(host: Any, path: str) -> None:
    """The name is in the file; whoever holds the instance is not disturbed."""
    host.start(host.instance())
    host.driver.save_instance("web1", path)
    locks = os.path.join(host.driver.directories.state, "locks")
    with (
        hvcore.instance_lock(locks, "web1", "start_instance", hvcore.Deadline.after(30)),
        pytest.raises(hvcore.InstanceBusy, match="start_instance"),
    ):
        host.driver.restore_instance(path, timeout=0.1)
    host.driver.restore_instance(path)


def test_from_one_qemu_to_another(make_host: Callable[..., Any], newer_qemu: str, path: str) -> None:
    """Both ways, with a machine type that both have; one that the other does not have is refused."""
    old, new = make_host(), make_host(qemu=newer_qemu)
    count = _count(old.start(old.instance(disks=[old.qcow2_disk()], params={"machine": "pc-i440fx-7.2"})))
    old.driver.save_instance("web1", path)
    assert _count(_restored(new, path)) >= count
    new.driver.save_instance("web1", f"{path}2")
    _answers(_restored(old, f"{path}2"))
    old.driver.stop_instance("web1", force=True)
    new.driver.start_instance(new.instance("web2"))
    new.driver.save_instance("web2", f"{path}3")
    with pytest.raises(hvcore.InvalidParameters) as caught:
        old.driver.restore_instance(f"{path}3")
    assert "machine-unknown" in caught.value.findings.codes


@pytest.mark.skipif(not _ROOT_TOOLS, reason="only root can confine QEMU, with setpriv and prlimit")
def test_under_confinement(host: Any, path: str, worker_id: str) -> None:
    """A confined QEMU never sees the file, and one with a uid of its own goes on."""
    first = 410_000 + 100 * int(worker_id.removeprefix("gw") if worker_id != "master" else 99)
    confined = {"uids": f"{first}-{first + 3}", "directory": str(host.directory / "uids")}
    params = {"confined": confined}
    count = _count(host.start(host.instance(security_model="confined", disks=[host.raw_disk()], params=params)))
    host.driver.save_instance("web1", path)
    assert os.stat(path).st_uid == 0
    assert _count(_restored(host, path)) >= count
    with open(f"/proc/{host.pid()}/status", encoding="ascii") as file:
        uids = re.search(r"^Uid:\t(\d+)", file.read(), re.MULTILINE)
    assert uids is not None
    assert first <= int(uids[1]) <= first + 3


@pytest.mark.timeout(600)
def test_linux_goes_on(boot: Any, host: Any, linux_shell: Any, path: str) -> None:
    """A file in the guest's memory, one on its disk and a program that counts: all are what they were."""
    disk = host.raw_disk("data.raw", 8 << 20)
    shell = boot("pc", disks=[disk])
    shell.run("head -c 3000000 /dev/urandom > /tmp/random")
    checksum = shell.run("sha256sum /tmp/random")
    assert re.match("[0-9a-f]{64} ", checksum)
    shell.run("head -c 1000000 /tmp/random > /dev/vda; sync")
    shell.run("{ (n=0; while true; do n=$((n+1)); echo $n > /tmp/n; usleep 100000; done) > /dev/null 2>&1 & }")
    shell.wait("[ -s /tmp/n ]")
    count = int(shell.run("cat /tmp/n"))
    host.driver.save_instance("web1", path)
    host.driver.restore_instance(path, paused=True)
    shell.console.close()
    console = host.attach("web1")
    console._socket.settimeout(120)
    shell.console = console
    host.driver.resume_instance("web1")
    assert shell.run("sha256sum /tmp/random") == checksum
    assert shell.run("head -c 1000000 /dev/vda | cmp - /tmp/random -n 1000000 && echo same").endswith("same")
    shell.wait(f"[ $(cat /tmp/n) -gt {count} ]")
