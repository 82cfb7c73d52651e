"""Security model confined: proved from outside, and against a hostile program in QEMU's place."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore_kvm import PrivateRoot, process
from hvcore_kvm.private_root import enter, program_tree

ROOT_ONLY = "only root can confine QEMU" if os.geteuid() != 0 else ""
NO_PROGRAM = "setpriv, prlimit or nsenter is not installed"
MISSING = "" if all(map(shutil.which, ("setpriv", "prlimit", "nsenter"))) else NO_PROGRAM
pytestmark = [pytest.mark.qemu, pytest.mark.skipif(bool(ROOT_ONLY or MISSING), reason=ROOT_ONLY or MISSING)]

KINDS = ("mnt", "uts", "ipc", "pid")


@pytest.fixture
def leases(tmp_path: Path) -> Path:
    return tmp_path / "uids"


@pytest.fixture
def instance(host: Any, leases: Path, worker_id: str) -> Callable[..., hvcore.Instance]:
    first = 400_000 + 100 * int(worker_id.removeprefix("gw") if worker_id != "master" else 99)
    pool = {"uids": f"{first}-{first + 3}", "directory": str(leases)}

    def make(name: str = "web1", confined: dict[str, Any] | None = None, **changes: Any) -> hvcore.Instance:
        params = {"confined": {**pool, **(confined or {})}, **changes.pop("params", {})}
        found: hvcore.Instance = host.instance(name, security_model="confined", params=params, **changes)
        return found

    return make


def _status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


def _namespace(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def _as_qemu(pid: int, program: str, *arguments: str, inside: bool = True) -> Any:
    """Run a Python program as the user of a QEMU process, in its namespaces and its root or in the host's."""
    uid = _status(pid)["Uid"][0]
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
    enter = ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--pid", "--root"] if inside else []
    python = os.path.realpath("/usr/bin/python3")
    command = [*enter, *user, "--inh-caps=-all", "--", python, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_the_kernel_says_of_it(host: Any, instance: Any, leases: Path) -> None:
    """An id of its own, no group, no capability, the sandbox, namespaces, limits; and the network is the host's."""
    host.driver.start_instance(instance())
    pid = host.pid()
    found = _status(pid)
    uid = found["Uid"][0]
    assert found["Uid"] == found["Gid"] == [uid] * 4
    assert [lease.name for lease in leases.iterdir()] == [uid]
    assert found["Groups"] == []
    assert {int(found[f"Cap{name}"][0], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (found["NoNewPrivs"], found["Seccomp"]) == (["1"], ["2"])
    assert found["NSpid"] == [str(pid), "1"]
    assert [kind for kind in KINDS if _namespace(pid, kind) == _namespace("self", kind)] == []
    assert _namespace(pid, "net") == _namespace("self", "net")
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert "Max core file size        0                    0 " in limits
    assert "Max processes             513                  513 " in limits


def test_what_it_sees_of_the_host(host: Any, instance: Any) -> None:
    """Programs, libraries and its own process; nothing can be written, and of what it was given only that."""
    host.driver.start_instance(instance(disks=[host.raw_disk()]))
    root = Path(f"/proc/{host.pid()}/root")
    top = host.firmware.parts[1]
    assert {entry.name for entry in root.iterdir()} <= {"bin", "lib", "lib32", "lib64", "sbin", "usr"} | {
        "dev",
        "etc",
        "proc",
        "sys",
        top,
    }
    shown = root / str(host.firmware).lstrip("/")
    assert shown.read_bytes() == host.firmware.read_bytes()
    assert [entry.name for entry in shown.parent.iterdir()] == [host.firmware.name]
    assert not (root / str(host.directory).lstrip("/")).exists()
    mounts = (root.parent / "mountinfo").read_text().splitlines()
    writable = [line.split()[4] for line in mounts if "ro" not in line.split()[5].split(",")]
    assert writable == ["/proc"]
    assert {entry.name for entry in (root / "dev").iterdir()} == {"null", "zero", "full", "random", "urandom"}


def test_disks_of_root_and_kvm_of_root(host: Any, instance: Any) -> None:
    """A disk and a kernel that root alone may read are used, and their owner and mode stay what they were."""
    disk = host.raw_disk()
    secret = host.directory / "private.rom"
    shutil.copy(host.firmware, secret)
    for path in (Path(disk.path), secret):
        path.chmod(0o600)
    before = [os.stat(path) for path in (disk.path, secret)]
    console = host.start(instance(disks=[disk], params={"firmware_image": str(secret)}))
    console.send(b"c")
    after = [os.stat(path) for path in (disk.path, secret)]
    assert [(s.st_uid, s.st_gid, s.st_mode) for s in after] == [(s.st_uid, s.st_gid, s.st_mode) for s in before]
    shown = os.stat(f"/proc/{host.pid()}/root{secret}")
    assert (str(shown.st_uid), stat.S_IMODE(shown.st_mode)) == (_status(host.pid())["Uid"][0], 0o400)


@pytest.mark.kvm
def test_kvm_without_a_group(host: Any, instance: Any) -> None:
    """KVM is used through a device node of its own, whatever the permissions of the host's are."""
    before = os.stat("/dev/kvm")
    host.start(instance(accel="kvm"))
    assert host.driver.get_instance_info("web1").accelerator == "kvm"
    after = os.stat("/dev/kvm")
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    own = os.stat(f"/proc/{host.pid()}/root/dev/kvm")
    assert (own.st_rdev, stat.S_IMODE(own.st_mode)) == (before.st_rdev, 0o600)


_HOSTILE = """
import ctypes, fcntl, json, os, signal, socket, struct, sys
victim, disk, directory, control, tap, block = sys.argv[1:]
got = []
def attempt(name, act):
    try:
        act()
    except (OSError, ValueError) as error:
        return
    got.append(name)
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect(control)
def take_tap():
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", tap.encode(), 0x1002))
def check(result):
    if result != 0:
        raise OSError(result)
libc = ctypes.CDLL(None, use_errno=True)
attempt("read the disk", lambda: open(disk, "rb").read(1))
attempt("write the disk", lambda: open(disk, "r+b").write(b"x"))
attempt("list the directory", lambda: os.listdir(directory))
attempt("connect to the monitor", connect)
attempt("attach to the tap", take_tap)
attempt("signal the other", lambda: os.kill(int(victim), 0))
attempt("read its memory", lambda: open(f"/proc/{victim}/mem", "rb").read(1))
attempt("reach its descriptors", lambda: os.listdir(f"/proc/{victim}/fd"))
attempt("reach its root", lambda: os.listdir(f"/proc/{victim}/root"))
attempt("become root", lambda: os.setuid(0))
attempt("read the shadow file", lambda: open("/etc/shadow").read())
attempt("open the host's disk", lambda: os.open(block, os.O_RDONLY))
attempt("make a device", lambda: os.mknod("/tmp/hvcore-hostile", 0o20600, os.makedev(1, 1)))
attempt("mount", lambda: check(libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, None)))
attempt("trace", lambda: check(libc.ptrace(16, int(victim), 0, 0)))
attempt("write somewhere", lambda: open("/usr/hvcore-hostile", "w"))
seen = [entry for entry in os.listdir("/proc") if entry.isdigit()]
print(json.dumps({"got": got, "seen": seen}))
"""


@pytest.mark.parametrize("inside", [True, False], ids=["where-qemu-is", "outside"])
def test_a_hostile_program(host: Any, instance: Any, inside: bool) -> None:
    """Run as the user of one QEMU, in its place or even outside, it reaches nothing of another instance."""
    disk = host.raw_disk()
    os.chmod(disk.path, 0o600)
    host.driver.start_instance(instance("victim", disks=[disk]))
    host.driver.start_instance(instance("web1"))
    victim, own = host.pid("victim"), host.pid("web1")
    assert _status(victim)["Uid"] != _status(own)["Uid"]
    directory = host.directory / "state/kvm/instances/victim"
    block = next((f"/dev/{entry}" for entry in os.listdir("/sys/block") if os.path.exists(f"/dev/{entry}")), "/none")
    arguments = (str(victim), disk.path, str(directory), str(directory / "control"), "hvcore-none", block)
    found = _as_qemu(own, _HOSTILE, *arguments, inside=inside)
    assert found["got"] == []
    if inside:
        assert str(victim) not in found["seen"]
        assert len(found["seen"]) <= 3, "itself, QEMU, and the program that runs it"


_TAP = """
import fcntl, json, os, struct, sys
try:
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x1002))
    print(json.dumps("attached"))
except OSError as error:
    print(json.dumps("refused"))
"""


def test_taps_of_others(host: Any, instance: Any) -> None:
    """A tap that is there already, of nobody's user, cannot be attached to from a confined QEMU's place."""
    ip = shutil.which("ip")
    name = f"hvt{os.getpid()}"[:15]
    if ip is None or not os.path.exists("/dev/net/tun"):
        pytest.skip("this host makes no taps")
    subprocess.run([ip, "tuntap", "add", "dev", name, "mode", "tap"], check=True)
    try:
        host.driver.start_instance(instance())
        assert _as_qemu(host.pid(), _TAP, name) == "refused"
        assert _as_qemu(host.pid(), _TAP, name, inside=False) == "refused"
    finally:
        subprocess.run([ip, "link", "delete", name], check=True)


def test_everything_goes_with_the_process(host: Any, instance: Any, leases: Path) -> None:
    """After a stop and after the guest's own end: no namespace, no mount, no control group, no lease."""
    for end in ("stop", "guest"):
        console = host.start(instance())
        groups = [line.split(":", 2) for line in Path(f"/proc/{host.pid()}/cgroup").read_text().splitlines()]
        ours = [group for _, controllers, group in groups if "hvcore" in group]
        assert len(ours) == 1
        if end == "guest":
            console.send(b"q")
            host.wait_end()
        host.driver.stop_instance("web1", force=True)
        assert list(leases.iterdir()) == []
        assert str(host.directory) not in Path("/proc/self/mountinfo").read_text()
        assert [path for path in Path("/sys/fs/cgroup").glob(f"*{ours[0]}") if path.is_dir()] == []


def test_the_default_of_root(host: Any) -> None:
    """An instance that names no model is confined, and its record says so."""
    notes = host.driver.plan_start(host.instance()).notes
    assert any("namespaces of its own: mount, uts, ipc, pid" in note for note in notes)
    host.driver.start_instance(host.instance())
    assert _namespace(host.pid(), "mnt") != _namespace("self", "mnt")
    record = json.loads((host.directory / "state/kvm/instances/web1/record.json").read_text())
    assert record["instance"]["security_model"] == "confined"
    assert host.driver.plan_start(host.instance()).changes == ()


_ASK = """
import json, sys, hvcore
driver = hvcore.load_driver("kvm", json.loads(sys.argv[1]))
plan = driver.plan_start(json.loads(sys.argv[2]))
print(json.dumps([note for note in plan.notes if "namespaces" in note]))
"""


def test_the_default_without_its_capabilities(host: Any) -> None:
    """Root that may not mount, as in many containers, gets model none."""
    definition = {"name": "web1", "params": {"machine": "pc", "accel": "tcg", "firmware_image": str(host.firmware)}}
    ask = [sys.executable, "-c", _ASK, json.dumps(host.settings), json.dumps(definition)]
    for drop, expected in ((["--bounding-set=-sys_admin"], 0), ([], 1)):
        command = ["setpriv", *drop, *ask]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert len(json.loads(done.stdout)) == expected


_START = """
import json, sys, hvcore
driver = hvcore.load_driver("kvm", json.loads(sys.argv[1]))
try:
    driver.start_instance(json.loads(sys.argv[2]))
except hvcore.HostError as error:
    print(json.dumps([error.code, error.message, error.hint]))
"""


def test_a_kernel_that_refuses(host: Any, instance: Any, leases: Path) -> None:
    """Asked for where it is not allowed, the start says what was refused, and leaves nothing."""
    definition = instance()
    given = {"name": "web1", "security_model": "confined", "params": dict(definition.params)}
    command = [sys.executable, "-c", _START, json.dumps(host.settings), json.dumps(given)]
    drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run([*drop, *command], capture_output=True, text=True, timeout=60, check=True)
    code, message, hint = json.loads(done.stdout)
    assert (code, "cannot make namespaces: Operation not permitted" in message) == ("confinement-refused", True)
    assert "security_model" in hint
    assert list(leases.iterdir()) == []
    assert host.driver.list_instances().instances == ()


BAD = [
    ({"sandbox": False}, [("contradiction", "params.sandbox")]),
    ({"chroot": True}, [("contradiction", "params.chroot")]),
    ({"confined": {"uids": "5"}}, [("invalid-value", "params.confined.uids")]),
    ({"confined": {"directory": "x"}}, [("invalid-value", "params.confined.directory")]),
    ({"confined": {"paths": ["relative"]}}, [("invalid-value", "params.confined.paths[0]")]),
    ({"confined": {"paths": ["/srv", "/var", "/root"]}}, [("too-much", "params.confined.paths[1]")] * 2),
]


@pytest.mark.parametrize(("params", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(host: Any, params: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    """What would take something of it away is found before anything is started."""
    found = host.driver.check_parameter_syntax(host.instance(security_model="confined", params=params))
    assert {f.code for f in found} == {code for code, _ in expected}
    assert len(found) == len(expected)
    assert expected[0] in [(f.code, f.path) for f in found]


def test_paths_that_are_not_there(host: Any, instance: Any, tmp_path: Path) -> None:
    """They are found; those that are there are seen."""
    wanted = instance(confined={"paths": [str(tmp_path / "nothing")]})
    assert [(f.code, f.path) for f in host.driver.validate_parameters(wanted)] == [
        ("no-such-file", "params.confined.paths[0]")
    ]
    (tmp_path / "folder").mkdir(mode=0o755)
    (tmp_path / "folder/open").write_text("open")
    (tmp_path / "folder/open").chmod(0o644)
    host.driver.start_instance(instance(confined={"paths": [str(tmp_path / "folder")]}))
    assert Path(f"/proc/{host.pid()}/root{tmp_path}/folder/open").read_text() == "open"


def test_a_directory_with_private_files_is_copied(host: Any, instance: Any, tmp_path: Path) -> None:
    """Such as keys: QEMU's user gets them for itself, links and directories in it are not followed."""
    folder = tmp_path / "tls"
    folder.mkdir()
    (folder / "server-key.pem").write_text("secret")
    (folder / "server-key.pem").chmod(0o600)
    (folder / "sub").mkdir()
    host.driver.start_instance(instance(confined={"paths": [str(folder)]}))
    seen = Path(f"/proc/{host.pid()}/root{folder}")
    assert [entry.name for entry in seen.iterdir()] == ["server-key.pem"]
    found = os.stat(seen / "server-key.pem")
    assert (str(found.st_uid), stat.S_IMODE(found.st_mode)) == (_status(host.pid())["Uid"][0], 0o400)


def test_a_root_of_its_own_does_not_reach_the_host(tmp_path: Path, firmware: Path) -> None:
    """What is mounted for a process cannot be seen from outside, and is gone with it."""
    place = tmp_path / "place"
    place.mkdir()
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "wb") as output:
        program = ("/usr/bin/python3", "-c", "import os; print(os.listdir('/')); os.read(3, 1)")
        root = PrivateRoot(owner=0, paths=(str(firmware),))
        pid = process.spawn(
            program, [theirs.fileno()], output.fileno(), prepare=lambda: enter(("mount", "pid"), root, str(place))
        )
        assert list(place.iterdir()) == []
        assert str(place) not in Path("/proc/self/mountinfo").read_text()
        ours.send(b"x")
    os.waitpid(pid, 0)
    place.rmdir()


@pytest.mark.parametrize(
    ("program", "tree"),
    [
        ("/usr/bin/qemu", None),
        ("/bin/qemu", None),
        ("/opt/qemu/bin/qemu", "/opt/qemu"),
        ("/opt/qemu/qemu", "/opt/qemu"),
        ("/bin2/qemu", "/bin2"),
    ],
)
def test_where_the_program_is(program: str, tree: str | None) -> None:
    """What a program beside those of the system needs is the directory its bin is in."""
    assert program_tree(program) == tree
