"""A backup to an NBD server of somebody else's, in the clear and with TLS; one that goes away does no harm."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvcore import HypervisorRefused, InstanceState, InvalidParameters, OperationFailed
from hvcore.certificates import make_certificates

pytestmark = pytest.mark.qemu

DISK = 8 << 20


class Server:
    """qemu-storage-daemon with an export for each disk.

    Args:
        directory: where its files are.
        uuids: the disks, whose uuids are the names of the exports.
    """

    def __init__(self, directory: Path, uuids: list[str]) -> None:
        self.directory = directory
        self.files = [directory / f"{uuid}.export" for uuid in uuids]
        self._uuids = uuids
        self._pidfile = directory / "server.pid"
        self.pid = 0
        for file in self.files:
            with file.open("wb") as opened:
                opened.truncate(DISK)

    def start(self, address: str, *options: str) -> bool:
        """Start it; true when it listens."""
        command = ["qemu-storage-daemon", "--daemonize", "--pidfile", str(self._pidfile), *options]
        for index, file in enumerate(self.files):
            node = json.dumps({"driver": "file", "node-name": f"n{index}", "filename": str(file)})
            command += ["--blockdev", node]
        secured = ",tls-creds=tls" if options else ""
        command += ["--nbd-server", f"{address}{secured}"]
        for index, uuid in enumerate(self._uuids):
            export = {"type": "nbd", "id": f"e{index}", "node-name": f"n{index}", "name": uuid, "writable": True}
            command += ["--export", json.dumps(export)]
        # With its pidfile locked and written the parent ends: it listens.
        if subprocess.run(command, check=False, timeout=60).returncode:
            return False
        self.pid = int(self._pidfile.read_text())
        return True

    def end(self, how: int = signal.SIGTERM) -> None:
        """End it, and wait for that."""
        if not self.pid:
            return
        fd = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(fd, how)
            assert select.select([fd], [], [], 30)[0]
        finally:
            os.close(fd)
        self.pid = 0


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[list[str]], Server]]:
    """Makes servers, and ends them."""
    servers: list[Server] = []

    def make(uuids: list[str]) -> Server:
        servers.append(Server(tmp_path, uuids))
        return servers[-1]

    yield make
    for server in servers:
        server.end()


def test_full_and_changes_on_top(host: Any, written: Callable[..., Any], serve: Any, tmp_path: Path) -> None:
    """An export is the disk at the moment of the full backup, and after an incremental one at that of this one."""
    web = written(host.qcow2_disk(), host.raw_disk(size=DISK), security_model="none")
    server = serve(web.uuids())
    assert server.start(f"addr.type=unix,addr.path={tmp_path}/nbd")
    target = f"nbd+unix:///{{uuid}}?socket={tmp_path}/nbd"
    with pytest.raises(InvalidParameters, match="do not go to one export"):
        host.driver.backup_instance("web1", target.replace("{uuid}", web.uuids()[0]))
    for since, checkpoint in ((None, "a"), ("a", "b")):
        web.scribble(len(checkpoint + str(since)))
        taken = host.driver.backup_instance("web1", target, checkpoint=checkpoint, since=since)
        web.nothing_left()
        assert [file.read_bytes() for file in server.files] == web.content
    assert [(disk.format, disk.base) for disk in taken.disks] == [("raw", None)] * 2
    server.end()
    with pytest.raises(InvalidParameters, match="no NBD server answers"):
        host.driver.backup_instance("web1", target)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/silent")
        silent.listen()
        with pytest.raises(InvalidParameters, match="no NBD server answers"):
            host.driver.backup_instance("web1", target.replace("/nbd", "/silent"), timeout=3)


def test_one_that_goes_away_does_not_harm_the_guest(
    host: Any, written: Callable[..., Any], serve: Any, tmp_path: Path
) -> None:
    """The guest writes on while its server dies; the backup fails in QEMU's words, and leaves nothing."""
    web = written(host.qcow2_disk(), security_model="none")
    server = serve(web.uuids())
    assert server.start(f"addr.type=unix,addr.path={tmp_path}/nbd")
    web.write(0, 0, DISK, 3)

    def die(progress: Any) -> None:
        server.end(signal.SIGKILL)
        web.write(0, DISK // 2, DISK // 2, 4)

    with pytest.raises(OperationFailed):
        host.driver.backup_instance(
            "web1",
            f"nbd+unix:///{web.uuids()[0]}?socket={tmp_path}/nbd",
            checkpoint="a",
            bandwidth=1 << 20,
            on_progress=die,
        )
    web.nothing_left()
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING
    assert host.driver.list_checkpoints("web1").checkpoints == ()
    assert Path(web.disks[0].path).stat().st_size > DISK


def test_one_that_hangs_does_not_harm_the_guest(
    host: Any, written: Callable[..., Any], serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest waits for a moment once; what is left is in order as soon as the server has gone."""
    monkeypatch.setattr("hvcore_kvm.backup.nodes.PATIENCE", 1)
    monkeypatch.setattr("hvcore_kvm.backup.taking._UNDO_PATIENCE", 1.0)
    web = written(host.qcow2_disk(), security_model="none")
    server = serve(web.uuids())
    assert server.start(f"addr.type=unix,addr.path={tmp_path}/nbd")
    web.write(0, 0, DISK, 3)

    def hang(progress: Any) -> None:
        os.kill(server.pid, signal.SIGSTOP)
        web.write(0, DISK // 2, 65536, 4)
        raise KeyboardInterrupt

    target = f"nbd+unix:///{web.uuids()[0]}?socket={tmp_path}/nbd"
    with pytest.raises(KeyboardInterrupt):
        host.driver.backup_instance("web1", target, checkpoint="a", bandwidth=1 << 20, on_progress=hang)
    web.write(0, DISK // 2 + 65536, 65536, 5)
    assert host.driver.get_instance_info("web1").state is InstanceState.RUNNING
    server.end(signal.SIGKILL)
    assert [(row.operation, row.outcome) for row in host.driver.recover().instances] == [("backup", "undone")]
    web.nothing_left()
    assert Path(web.disks[0].path).stat().st_size > DISK


def test_with_tls(
    host: Any, written: Callable[..., Any], serve: Any, free_port: Callable[[], int], tmp_path: Path
) -> None:
    """Certificates of both sides; without them, and with those of another authority, it is refused."""
    for authority in ("right", "wrong"):
        make_certificates(str(tmp_path / authority), ["localhost"])
    place = {name: str(tmp_path / name / "localhost") for name in ("right", "wrong")}
    web = written(host.qcow2_disk())
    server = serve(web.uuids())
    tls = f"tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={place['right']}"
    port = free_port()
    assert server.start(f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}", "--object", tls)
    target = f"nbd://localhost:{port}/{web.uuids()[0]}"
    web.scribble(1)
    host.driver.backup_instance("web1", target, tls=place["right"])
    web.nothing_left()
    assert server.files[0].read_bytes() == web.content[0]
    for given in (None, place["wrong"]):
        with pytest.raises(HypervisorRefused):
            host.driver.backup_instance("web1", target, tls=given)
        web.nothing_left()
    with pytest.raises(InvalidParameters) as caught:
        host.driver.backup_instance("web1", target, tls=str(tmp_path / "none"))
    assert len(caught.value.findings) == 3
