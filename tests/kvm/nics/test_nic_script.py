"""NIC mode script: what the script is told, when it is called, what it may not do, and which scripts are run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Nic
from hvcore_kvm import run_command, tap_name
from hvcore_kvm.nic.script import ScriptedNetwork, ScriptParameters

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make taps"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="there is no /dev/net/tun"),
]

PATIENCE = 30.0

# Writes down its arguments, its environment, its directory and whether the interface is there.
_RECORD = """
import json, os, sys
facts = {
    "arguments": sys.argv[1:],
    "environment": dict(os.environ),
    "directory": os.getcwd(),
    "there": os.path.exists("/sys/class/net/" + sys.argv[1]),
    "fds": sorted(os.listdir("/proc/self/fd")),
    "session": os.getsid(0) == os.getpid(),
}
with open(%r, "a") as file:
    file.write(json.dumps(facts) + "\\n")
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a script of root's."""

    def make(text: str, interpreter: str = "/bin/sh", name: str = "script") -> Path:
        path = tmp_path / name
        path.write_text(f"#!{interpreter}\n{text}\n")
        path.chmod(0o700)
        return path

    return make


@pytest.fixture
def recorder(tmp_path: Path, write: Callable[..., Path]) -> Path:
    return write(_RECORD % str(tmp_path / "calls"), f"{os.path.realpath('/usr/bin/python3')} -I", "recorder")


def _calls(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _nic(script: Path, params: dict[str, Any] | None = None, **changes: Any) -> Nic:
    params = {"script": str(script), **(params or {})}
    return Nic(mode="script", params=params, **{"uuid": str(uuid.uuid4()), **changes})


def test_what_the_script_is_told(host: Any, tmp_path: Path, recorder: Path) -> None:
    """It gets all of the contract and nothing else: up when the tap is there, down when it is gone."""
    os.environ["HVT_LEAK"] = "1"
    network = {
        "name": "net1",
        "uuid": "c0ffee00-0000-4000-8000-000000000000",
        "tags": ["a", "b"],
        "subnet": "192.0.2.0/24",
        "gateway": "192.0.2.1",
        "subnet6": "2001:db8::/64",
        "gateway6": "2001:db8::1",
        "mac_prefix": "aa:00:01",
    }
    nic = _nic(
        recorder,
        {"script_mode": "bridged", "vlan": ".10:20", "network": network},
        link="br7",
        ip="192.0.2.7",
        mac="52:54:00:00:00:07",
        name="front",
    )
    tap = tap_name(nic.uuid or "")
    try:
        host.driver.start_instance(host.instance(nics=[Nic(), nic], tags=["one", "two"]))
        host.driver.stop_instance("web1", force=True)
    finally:
        del os.environ["HVT_LEAK"]
    up, down = _calls(tmp_path)
    assert up["environment"] == {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "ACTION": "up",
        "INSTANCE": "web1",
        "MAC": "52:54:00:00:00:07",
        "MODE": "bridged",
        "INTERFACE": tap,
        "INTERFACE_INDEX": "1",
        "INTERFACE_UUID": nic.uuid,
        "INTERFACE_NAME": "front",
        "TAGS": "one two",
        "IP": "192.0.2.7",
        "LINK": "br7",
        "BRIDGE": "br7",
        "VLAN": ".10:20",
        "NETWORK_NAME": "net1",
        "NETWORK_UUID": "c0ffee00-0000-4000-8000-000000000000",
        "NETWORK_TAGS": "a b",
        "NETWORK_SUBNET": "192.0.2.0/24",
        "NETWORK_GATEWAY": "192.0.2.1",
        "NETWORK_SUBNET6": "2001:db8::/64",
        "NETWORK_GATEWAY6": "2001:db8::1",
        "NETWORK_MAC_PREFIX": "aa:00:01",
    }
    assert (up["arguments"], up["directory"], up["there"], up["session"]) == ([tap], "/", True, True)
    # Standard input, output and error; the last is that of the listing.
    assert up["fds"] == ["0", "1", "2", "3"]
    assert down == {**up, "there": False, "environment": {**up["environment"], "ACTION": "down"}}


def test_what_is_not_known_is_not_said(host: Any, tmp_path: Path, recorder: Path) -> None:
    """Variables without a value are not there."""
    host.driver.start_instance(host.instance(nics=[_nic(recorder, {"queues": 2})]))
    host.driver.stop_instance("web1", force=True)
    up, down = _calls(tmp_path)
    always = {"PATH", "LC_ALL", "ACTION", "INSTANCE", "MAC", "MODE", "TAGS"}
    always |= {"INTERFACE", "INTERFACE_INDEX", "INTERFACE_UUID"}
    assert set(up["environment"]) == set(down["environment"]) == always
    assert (up["environment"]["MODE"], up["environment"]["TAGS"]) == ("ext", "")


@pytest.mark.linux
def test_a_guest_that_a_script_connects(host: Any, network: Any, boot: Any, write: Callable[..., Path]) -> None:
    """The script puts the tap on a bridge, and the guest reaches a host on it."""
    bridge = network.link("type", "bridge")
    far = network.namespace()
    subprocess.run(["ip", "link", "set", network.cable(far, f"{network.ip4(2)}/28"), "master", bridge], check=True)
    script = write('[ $ACTION = down ] && exit\nip link set "$1" master "$LINK" && ip link set "$INTERFACE" up')
    guest = boot([_nic(script, link=bridge)], f"hv.ip={network.ip4(7)}/28")
    assert guest.reaches(network.ip4(2))
    host.driver.stop_instance("web1", force=True)
    assert len(os.listdir(f"/sys/class/net/{bridge}/brif")) == 1, "the cable"


def test_a_script_that_fails(host: Any, write: Callable[..., Path]) -> None:
    """The start fails with what the script said, and its tap is gone."""
    nic = _nic(write("[ $ACTION = down ] && exit 0\necho no such; echo network >&2; exit 7"))
    with pytest.raises(hvcore.HostError, match="ended with status 7: no such\nnetwork") as caught:
        host.driver.start_instance(host.instance(nics=[nic]))
    assert caught.value.code == "command-failed"
    assert not os.path.exists(f"/sys/class/net/{tap_name(nic.uuid or '')}")
    assert host.files() == set()


def test_down_after_a_failed_start(host: Any, tmp_path: Path, recorder: Path) -> None:
    """What the script has put up it takes down again when QEMU does not start."""
    with pytest.raises(hvcore.SpawnFailed):
        host.driver.start_instance(host.instance(params={"extra_args": "-device nosuch"}, nics=[_nic(recorder)]))
    assert [(call["environment"]["ACTION"], call["there"]) for call in _calls(tmp_path)] == [
        ("up", True),
        ("down", False),
    ]


def test_down_once_after_a_crash(host: Any, tmp_path: Path, recorder: Path) -> None:
    """After QEMU was killed, whoever puts it away calls down, once."""
    host.driver.start_instance(host.instance(nics=[_nic(recorder)]))
    os.kill(host.pid(), signal.SIGKILL)
    host.wait_end()
    for _ in range(2):
        host.driver.stop_instance("web1", force=True)
    assert [call["environment"]["ACTION"] for call in _calls(tmp_path)] == ["up", "down"]


def test_down_that_fails_is_reported(host: Any, tmp_path: Path, write: Callable[..., Path]) -> None:
    """QEMU is gone, the error says what was not taken down, and stopping again tries again."""
    broken = tmp_path / "broken"
    broken.touch()
    nic = _nic(write(f"[ $ACTION = up ] || [ ! -e {shlex.quote(str(broken))} ] || {{ echo stuck; exit 1; }}"))
    host.driver.start_instance(host.instance(nics=[nic]))
    with pytest.raises(hvcore.OperationFailed, match=r"nics\[0\].*status 1: stuck"):
        host.driver.stop_instance("web1", force=True)
    assert [row.pid for row in host.driver.list_instances().instances] == [None]
    broken.unlink()
    host.driver.stop_instance("web1", force=True)
    assert host.driver.list_instances().instances == ()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_a_script_that_hangs(host: Any, write: Callable[..., Path], fifo: Path) -> None:
    """At the timeout it is killed with all it has started, and what it said is in the error."""
    script = write(
        f"[ $ACTION = down ] && exit 0\necho begun\n(trap '' TERM; exec 3>{fifo}; read never <{fifo}) & wait"
    )
    # Open for reading, it tells by its end that nobody has it open for writing.
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(hvcore.HostError, match="did not end within 1 seconds and was killed: begun") as caught:
            host.driver.start_instance(host.instance(nics=[_nic(script, {"script_timeout": 1})]))
        assert caught.value.code == "command-timeout"
        os.set_blocking(reader, True)
        assert os.read(reader, 1) == b"", "a process of the script lives on"
    finally:
        os.close(reader)


def test_a_script_that_never_stops_talking(host: Any, write: Callable[..., Path]) -> None:
    """Its output is bounded in the error, and the timeout holds."""
    nic = _nic(write('[ "$ACTION" = down ] || while :; do echo xxxxxxxxxxxxxxxx; done'), {"script_timeout": 1})
    with pytest.raises(hvcore.HostError, match="was killed") as caught:
        host.driver.start_instance(host.instance(nics=[nic]))
    assert len(caught.value.message) < 5000


def test_what_it_leaves_running_is_not_waited_for(write: Callable[..., Path], fifo: Path) -> None:
    """A script that has started a server is done when it is done itself."""
    writer = os.open(fifo, os.O_RDWR)
    try:
        # Open before it is left: what is written then is not lost, and nobody waits for a writer for ever.
        script = write(f"exec 3<{fifo}\n(read line <&3; exit) & echo done")
        assert run_command([str(script)], timeout=PATIENCE) == "done\n"
        os.write(writer, b"end\n")
    finally:
        os.close(writer)


def test_programs_that_do_not_run(write: Callable[..., Path], tmp_path: Path) -> None:
    """No such interpreter, a death by signal, an end without a word."""
    with pytest.raises(hvcore.HostError, match="cannot run .*: No such file or directory"):
        run_command([str(write("", "/no/such/interpreter"))], timeout=PATIENCE)
    with pytest.raises(hvcore.HostError, match="was killed by signal 9 without a word"):
        run_command([str(write("kill -9 $$"))], timeout=PATIENCE)
    with pytest.raises(hvcore.HostError, match="ended with status 1: a.b..31mc$"):
        run_command([str(write(r"printf 'a\000b\033[31mc'; exit 1"))], timeout=PATIENCE)


def _unsafe(tmp_path: Path, script: Path, kind: str) -> Path:
    """Do something to a script; returns the path under which it is named."""
    if kind == "missing":
        script.unlink()
    elif kind == "directory":
        return tmp_path
    elif kind == "not executable":
        script.chmod(0o600)
    elif kind == "writable for all":
        script.chmod(0o702)
    elif kind == "writable for the group":
        script.chmod(0o720)
    elif kind == "somebody's":
        os.chown(script, 12345, 0)
    elif kind == "in somebody's directory":
        (tmp_path / "theirs").mkdir()
        script = script.rename(tmp_path / "theirs/script")
        os.chown(tmp_path / "theirs", 12345, 0)
    elif kind == "in an open directory":
        (tmp_path / "open").mkdir()
        script = script.rename(tmp_path / "open/script")
        (tmp_path / "open").chmod(0o777)
    elif kind == "behind somebody's link":
        (tmp_path / "link").symlink_to(script)
        os.lchown(tmp_path / "link", 12345, 0)
        return tmp_path / "link"
    elif kind == "behind a link to an open directory":
        (tmp_path / "open").mkdir(mode=0o777)
        (tmp_path / "open").chmod(0o777)
        (tmp_path / "open/link").symlink_to(script)
        return tmp_path / "open/link"
    elif kind == "a pipe":
        script.unlink()
        os.mkfifo(script, 0o700)
    return script


KINDS = (
    "missing",
    "directory",
    "not executable",
    "writable for all",
    "writable for the group",
    "somebody's",
    "in somebody's directory",
    "in an open directory",
    "behind somebody's link",
    "behind a link to an open directory",
    "a pipe",
)


@pytest.mark.parametrize("kind", KINDS)
def test_scripts_that_are_not_run(
    host: Any, findings: Any, tmp_path: Path, write: Callable[..., Path], kind: str
) -> None:
    """Only a file that is in nobody's hands but root's is run as root."""
    ran = tmp_path / "ran"
    script = _unsafe(tmp_path, write(f"touch {shlex.quote(str(ran))}"), kind)
    nic = _nic(script)
    assert findings(nic) == [("unsafe-script", "nics[0].params.script")]
    with pytest.raises(hvcore.InvalidParameters):
        host.driver.start_instance(host.instance(nics=[nic]))
    assert not ran.exists()


def test_a_script_that_becomes_unsafe(host: Any, tmp_path: Path, recorder: Path) -> None:
    """What was safe at the start is looked at again before down."""
    host.driver.start_instance(host.instance(nics=[_nic(recorder)]))
    recorder.chmod(0o777)
    with pytest.raises(hvcore.OperationFailed, match="others than root may write to"):
        host.driver.stop_instance("web1", force=True)
    assert len(_calls(tmp_path)) == 1
    recorder.chmod(0o700)


def test_a_bandwidth_limit(host: Any, recorder: Path, tables: Any) -> None:
    """The tap has it, and its rules go with the instance."""
    nic = _nic(recorder, {"bandwidth_limit": 10**6})
    host.driver.start_instance(host.instance(nics=[nic]))
    assert tables(nic) == ["netdev"]
    host.driver.stop_instance("web1", force=True)
    assert tables(nic) == []


BAD = [
    # NIC, expected
    ({}, {}, [("missing-parameter", "params.script")]),
    ({}, {"script": "bin/up"}, [("invalid-value", "params.script")]),
    ({}, {"script": "/a/../b"}, [("invalid-value", "params.script")]),
    ({}, {"script": "/bin/true", "script_timeout": 0}, [("invalid-value", "params.script_timeout")]),
    ({}, {"script": "/bin/true", "script_mode": "x"}, [("not-a-choice", "params.script_mode")]),
    ({}, {"script": "/bin/true", "script_mode": "bridged"}, [("missing-parameter", "link")]),
    ({}, {"script": "/bin/true", "script_mode": "routed"}, [("missing-parameter", "ip")]),
    ({}, {"script": "/bin/true", "vlan": "10:20"}, [("invalid-value", "params.vlan")]),
    ({}, {"script": "/bin/true", "network": {}}, None),
    ({}, {"script": "/bin/true"}, []),
]


@pytest.mark.parametrize(("nic", "params", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(
    findings: Any, nic: dict[str, Any], params: dict[str, Any], expected: list[tuple[str, str]] | None
) -> None:
    """All that is wrong is found at once."""
    found = findings(Nic(mode="script", params=params, **nic))
    if expected is None:
        assert {path for _, path in found} == {"nics[0].params.network.name", "nics[0].params.network.uuid"}
    else:
        assert found == [(code, f"nics[0].{path}") for code, path in expected]


def test_others_may_not_make_taps(recorder: Path) -> None:
    """Without the capability it is refused, and the way out is said."""
    nic, parameters = _nic(Path("/bin/true")), ScriptParameters(script="/bin/true")
    os.seteuid(65534)
    try:
        found = list(ScriptedNetwork().check_host(nic, parameters))
    finally:
        os.seteuid(0)
    assert [(f.code, f.path) for f in found] == [("needs-root", "mode")]
