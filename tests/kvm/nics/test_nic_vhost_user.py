"""NIC mode vhost-user: QEMU meets a switch on a socket, and a start without one ends with words instead of waiting.

The switch is a small program here that speaks the protocol as far as QEMU asks at its start. Where passt knows the
protocol (since 2025), a Linux guest gets its address through it.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import shutil
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Deadline, Nic
from hvcore_kvm.qmp import QmpClient

PATIENCE = 30.0

pytestmark = pytest.mark.qemu

_HEADER = struct.Struct("=III")  # request, flags, size
_REPLY = 1 | 4  # version 1, an answer
_GET_FEATURES, _SET_MEM_TABLE, _GET_PROTOCOL_FEATURES, _SET_PROTOCOL_FEATURES, _GET_QUEUE_NUM = 1, 5, 15, 16, 17
_VERSION_1, _PROTOCOL_FEATURES = 1 << 32, 1 << 30
_MQ = 1  # a bit of the protocol's features
_ANSWERS = {_GET_FEATURES: _VERSION_1 | _PROTOCOL_FEATURES | 1 << 22, _GET_PROTOCOL_FEATURES: _MQ, _GET_QUEUE_NUM: 4}


class Switch:
    """The other side of the protocol, on one connection after another.

    Attributes:
        requests: what QEMU has asked, in order.
    """

    def __init__(self, path: Path, *, listens: bool) -> None:
        self.requests: list[int] = []
        self._path = path
        self._ready = threading.Condition()
        self._connection: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._ended = False
        if listens:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._connection = self._meet()
            while not self._ended:
                self._answer(self._connection)
        except (OSError, EOFError):
            return

    def _meet(self) -> socket.socket:
        if self._listener is not None:
            self._listener.settimeout(PATIENCE)
            return self._listener.accept()[0]
        deadline = Deadline.after(PATIENCE)
        while not self._ended and not deadline.expired:
            client = socket.socket(socket.AF_UNIX)
            try:
                client.connect(str(self._path))
                return client
            except OSError:
                client.close()
                # As a switch does, which tries again and again.
                select.select([], [], [], 0.01)
        raise EOFError

    def _answer(self, connection: socket.socket) -> None:
        data, ancillary, _, _ = connection.recvmsg(_HEADER.size, socket.CMSG_SPACE(8 * 4))
        if not data:
            raise EOFError
        for _, _, content in ancillary:
            for fd in array.array("i", content[: len(content) // 4 * 4]):
                os.close(fd)
        request, _, size = _HEADER.unpack(data)
        if size:
            connection.recv(size, socket.MSG_WAITALL)
        if request in _ANSWERS:
            connection.sendall(_HEADER.pack(request, _REPLY, 8) + _ANSWERS[request].to_bytes(8, "little"))
        with self._ready:
            self.requests.append(request)
            self._ready.notify_all()

    def asked(self, request: int) -> bool:
        """Wait until QEMU has asked something."""
        with self._ready:
            return self._ready.wait_for(lambda: request in self.requests, PATIENCE)

    def close(self) -> None:
        self._ended = True
        for end in (self._connection, self._listener):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for end in (self._connection, self._listener):
            if end is not None:
                end.close()


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Callable[..., Switch]]:
    made: list[Switch] = []

    def make(*, listens: bool, path: Path = tmp_path / "port") -> Switch:
        made.append(Switch(path, listens=listens))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(params=["installed", "newer"])
def host(request: pytest.FixtureRequest, make_host: Callable[..., Any], switch: Any) -> Any:
    """A host that is taken down before its switches."""
    return make_host(**({"qemu": request.getfixturevalue("newer_qemu")} if request.param == "newer" else {}))


def _nic(path: Path, **params: Any) -> Nic:
    return Nic(mode="vhost-user", params={"socket": str(path), **params})


def _qmp(host: Any, command: str, **arguments: Any) -> Any:
    path = str(host.directory / "state/kvm/instances/web1/query")
    with QmpClient.connect(path, Deadline.after(PATIENCE)) as client:
        return client.execute(command, arguments, deadline=Deadline.after(PATIENCE))


def test_a_switch_that_listens(host: Any, switch: Callable[..., Switch], tmp_path: Path) -> None:
    """QEMU speaks the protocol with it, with as many queues as asked for, and memory that can be shared."""
    peer = switch(listens=True)
    host.driver.start_instance(
        host.instance(security_model="none", nics=[_nic(tmp_path / "port", queues=3)]), paused=True
    )
    assert peer.asked(_GET_QUEUE_NUM)
    assert peer.requests[0] == _GET_FEATURES
    (memory,) = _qmp(host, "query-memdev")
    assert memory["share"]
    network = _qmp(host, "human-monitor-command", **{"command-line": "info network"})
    assert network.count("type=vhost-user") == 3


def test_a_switch_that_connects_and_is_restarted(host: Any, switch: Callable[..., Switch], tmp_path: Path) -> None:
    """QEMU listens; a new switch takes the place of the old one; the socket is gone afterwards."""
    path = tmp_path / "port"
    first = switch(listens=False)
    host.driver.start_instance(host.instance(security_model="none", nics=[_nic(path, server=True)]), paused=True)
    assert first.asked(_GET_FEATURES)
    assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    first.close()
    again = switch(listens=False)
    assert again.asked(_GET_FEATURES)
    host.driver.stop_instance("web1", force=True)
    assert not path.exists()


def test_a_switch_that_does_not_connect(make_host: Any, tmp_path: Path, host: Any) -> None:
    """QEMU waits for it; the start ends in time, says for what, and leaves nothing."""
    impatient = make_host(**{**host.settings, "start_timeout": 1.0})
    path = tmp_path / "port"
    with pytest.raises(hvcore.DeadlineExceeded) as caught:
        impatient.driver.start_instance(impatient.instance(security_model="none", nics=[_nic(path, server=True)]))
    assert str(path) in (caught.value.hint or "")
    assert impatient.driver.list_instances().instances == ()
    assert not path.exists()


def test_a_switch_that_has_ended(host: Any, tmp_path: Path) -> None:
    """Its socket is still there: QEMU ends with words, and the path stays as it is."""
    path = tmp_path / "port"
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))
    with pytest.raises(hvcore.SpawnFailed, match="Connection refused") as caught:
        host.driver.start_instance(host.instance(security_model="none", nics=[_nic(path)]))
    assert "switch" in (caught.value.hint or "")
    assert path.exists()


def test_a_path_that_another_has(host: Any, switch: Callable[..., Switch], tmp_path: Path) -> None:
    """It is not taken away from who listens there; what somebody has left behind is removed."""
    path = tmp_path / "port"
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen(1)
        with pytest.raises(hvcore.HostError) as caught:
            host.driver.start_instance(host.instance(security_model="none", nics=[_nic(path, server=True)]))
        assert caught.value.code == "in-use"
        assert path.exists()
    switch(listens=False)
    host.driver.start_instance(host.instance(security_model="none", nics=[_nic(path, server=True)]), paused=True)


def test_a_long_path(host: Any, switch: Callable[..., Switch], tmp_path: Path) -> None:
    """Whoever listens on it can be reached, whatever is in its name; QEMU cannot listen on it."""
    deep = tmp_path / ("d" * 100) / "a,b=c"
    deep.parent.mkdir()
    short = tmp_path / "port"
    peer = switch(listens=True)
    os.rename(short, deep)
    host.driver.start_instance(host.instance(security_model="none", nics=[_nic(deep)]), paused=True)
    assert peer.asked(_GET_FEATURES)
    findings = host.driver.check_parameter_syntax(host.instance(security_model="none", nics=[_nic(deep, server=True)]))
    assert [(f.code, f.path) for f in findings] == [("invalid-value", "nics[0].params.socket")]


@pytest.mark.parametrize(
    ("given", "code", "where"),
    [
        ({"link": "br0"}, "not-used", "nics[0].link"),
        ({"model": "e1000"}, "contradiction", "nics[0].params.model"),
        ({"vhost": True}, "contradiction", "nics[0].params.vhost"),
        ({"socket": "port"}, "invalid-value", "nics[0].params.socket"),
    ],
)
def test_what_is_wrong_is_found(host: Any, tmp_path: Path, given: dict[str, Any], code: str, where: str) -> None:
    """Without looking at the host."""
    params = {"socket": str(tmp_path / "port"), **given}
    nic = Nic(mode="vhost-user", link=params.pop("link", None), params=params)
    findings = host.driver.check_parameter_syntax(host.instance(security_model="none", nics=[nic]))
    assert [(finding.code, finding.path) for finding in findings] == [(code, where)]


@pytest.mark.parametrize("given", [{"memory_backend": "anon"}, {"memory_backend": "memfd", "memory_share": False}])
def test_memory_that_cannot_be_shared(host: Any, tmp_path: Path, given: dict[str, Any]) -> None:
    """The switch would see none of the guest's packets."""
    instance = host.instance(security_model="none", nics=[_nic(tmp_path / "port")], params=given)
    (finding,) = host.driver.check_parameter_syntax(instance)
    assert finding.code == "contradiction"
    assert "vhost-user" in finding.message


def test_what_the_host_lacks(host: Any, tmp_path: Path) -> None:
    """No socket, no socket but a file, no directory."""

    def found(path: Path, **params: Any) -> list[tuple[str, str]]:
        findings = host.driver.validate_parameters(host.instance(security_model="none", nics=[_nic(path, **params)]))
        return [(finding.code, finding.path.removeprefix("nics[0].params.")) for finding in findings]

    assert found(tmp_path / "absent") == [("no-peer", "socket")]
    (tmp_path / "file").touch()
    assert found(tmp_path / "file") == [("file-unusable", "socket")]
    assert found(tmp_path / "file", server=True) == [("file-unusable", "socket")]
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    assert found(tmp_path / "link") == [("file-unusable", "socket")]
    assert found(tmp_path / "none" / "port", server=True) == [("not-a-directory", "socket")]
    assert found(tmp_path / "port", server=True) == []


def _passt() -> str | None:
    """A passt that knows the protocol."""
    program = shutil.which("passt")
    if program is None:
        return None
    said = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    return program if "--vhost-user" in said.stdout + said.stderr else None


@pytest.fixture
def passt(tmp_path: Path) -> Iterator[Path]:
    """Where a passt listens."""
    path = tmp_path / "port"
    words = [str(_passt()), "--vhost-user", "--foreground", "--one-off", "--quiet", "--socket", str(path)]
    peer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        deadline = Deadline.after(PATIENCE)
        while not path.exists() and peer.poll() is None and not deadline.expired:
            select.select([], [], [], 0.01)
        assert path.exists()
        yield path
    finally:
        peer.kill()
        peer.communicate()


@pytest.mark.linux
@pytest.mark.skipif(_passt() is None, reason="there is no passt that knows vhost-user")
def test_a_guest_gets_its_address_through_shared_memory(passt: Path, host: Any, boot: Callable[..., Any]) -> None:
    """Packets of a Linux guest come and go, moved by another process."""
    if dict(host.driver.get_node_info().hypervisor)["qemu"].startswith("7."):
        pytest.skip("QEMU 7.2 crashes as soon as an emulated guest uses a vhost-user NIC with MSI-X")
    guest = boot([_nic(passt)])
    guest.ok("udhcpc -i eth0 -s /etc/dhcp.sh -t 5 -T 2 -n -q")


def test_an_emulated_guest_on_an_old_qemu_is_warned_of(host: Any, tmp_path: Path) -> None:
    """What happens there is seen by none of the checks."""
    old = dict(host.driver.get_node_info().hypervisor)["qemu"].startswith("7.")
    advice = host.driver.assess_parameters(host.instance(security_model="none", nics=[_nic(tmp_path / "port")]))
    assert (("crashes", "nics[0].mode") in {(f.code, f.path) for f in advice}) == old


def test_a_confined_qemu_makes_no_socket(host: Any, tmp_path: Path) -> None:
    """With server QEMU makes the socket, which a confined one cannot; as a client it is given the way to it."""
    for server, expected in ((True, [("contradiction", "nics[0].mode")]), (False, [])):
        instance = host.instance(security_model="confined", nics=[_nic(tmp_path / "port", server=server)])
        assert [(f.code, f.path) for f in host.driver.check_parameter_syntax(instance)] == expected


class PatientSwitch(Switch):
    """One that listens, and serves an instance after the other."""

    def _serve(self) -> None:
        while not self._ended:
            with contextlib.suppress(OSError, EOFError):
                self._connection = self._meet()
                with self._connection as connection:
                    while not self._ended:
                        self._answer(connection)

    def close(self) -> None:
        self._ended = True
        # A listener that is shut down wakes nobody who waits with a timeout, and a client does.
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self._path))
            self._thread.join()
        super().close()


@pytest.mark.timeout(300)
def test_it_keeps_what_a_nic_mode_promises(conformance: Any, tmp_path: Path) -> None:
    """The conformance suite, with a switch that listens, and that QEMU's user may connect to."""
    switch = PatientSwitch(tmp_path / "port", listens=True)
    try:
        (tmp_path / "port").chmod(0o666)
        conformance.passes("nic-mode", "vhost-user", socket=str(tmp_path / "port"))
    finally:
        switch.close()
