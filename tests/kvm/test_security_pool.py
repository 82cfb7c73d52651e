"""Security model pool: each instance under a user id of its own, leased while it is there; races and crashes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.guests import write_firmware
from hvcore_kvm.security.pool import PoolConfinement, PoolParameters
from hvcore_kvm.uid_pool import parse_uids

ROOT_ONLY = "only root can run QEMU as somebody else" if os.geteuid() != 0 else ""
NO_SETPRIV = "setpriv is not installed" if shutil.which("setpriv") is None else ""
pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(bool(ROOT_ONLY or NO_SETPRIV), reason=ROOT_ONLY or NO_SETPRIV),
]


@pytest.fixture(scope="session")
def readable_firmware() -> Iterator[Path]:
    """The guest's firmware where everybody can read it; pytest's own directories are private."""
    directory = Path(tempfile.mkdtemp(prefix="hvcore-"))
    directory.chmod(0o755)
    path = write_firmware(directory / "guest.rom")
    path.chmod(0o644)
    yield path
    shutil.rmtree(directory)


@pytest.fixture
def uids(worker_id: str) -> range:
    """Ids that no other test uses: which are free is a matter of the whole host."""
    first = 300_000 + 100 * int(worker_id.removeprefix("gw") if worker_id != "master" else 99)
    return range(first, first + 4)


@pytest.fixture
def leases(tmp_path: Path) -> Path:
    return tmp_path / "uids"


@pytest.fixture
def pool(uids: range, leases: Path) -> dict[str, str]:
    return {"uids": f"{uids[0]}-{uids[-1]}", "directory": str(leases)}


@pytest.fixture
def instance(host: Any, readable_firmware: Path, pool: dict[str, str]) -> Callable[..., hvcore.Instance]:
    host.firmware = readable_firmware

    def make(name: str = "web1", **changes: Any) -> hvcore.Instance:
        found: hvcore.Instance = host.instance(name, security_model="pool", params={"pool": {**pool, **changes}})
        return found

    return make


def _uid(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    assert int(fields["CapEff"][0], 16) == int(fields["CapBnd"][0], 16) == 0
    assert fields["Uid"] == fields["Gid"] == [fields["Uid"][0]] * 4
    return int(fields["Uid"][0])


def _leased(leases: Path) -> dict[int, str]:
    """Which instance has which, by name."""
    return {int(path.name): json.loads(path.read_text())["name"] for path in leases.iterdir()}


def test_each_has_one_of_its_own(host: Any, instance: Any, leases: Path, uids: range) -> None:
    """Instances that run have different ids of the pool, written down by name, and give them back."""
    names = ["web1", "web2", "web3", "web4"]
    for name in names:
        host.driver.start_instance(instance(name))
    found = {_uid(host.pid(name)): name for name in names}
    assert found == _leased(leases)
    assert set(found) == set(uids)
    host.driver.stop_instance("web2", force=True)
    assert "web2" not in _leased(leases).values()
    for name in ("web1", "web3", "web4"):
        host.driver.stop_instance(name, force=True)
    assert _leased(leases) == {}


def test_planning_takes_nothing(host: Any, instance: Any, leases: Path) -> None:
    """A plan says which id it would be; two plans say the same, and nothing is written."""
    plan = host.driver.plan_start(instance())
    assert host.driver.plan_start(instance()) == plan
    assert not leases.exists()
    host.driver.start_instance(instance())
    assert f"lease user id {_uid(host.pid())} (security model)" in plan.steps
    assert host.driver.plan_start(instance()).steps == plan.steps, "while it runs it is the same"


def test_the_same_one_again(host: Any, instance: Any) -> None:
    """An instance gets the same id again while nobody else has it."""
    seen = set()
    for _ in range(2):
        host.driver.start_instance(instance())
        seen.add(_uid(host.pid()))
        host.driver.reboot_instance("web1", mode="hard")
        seen.add(_uid(host.pid()))
        host.driver.stop_instance("web1", force=True)
    assert len(seen) == 1


def test_an_empty_pool(host: Any, instance: Any, uids: range, leases: Path) -> None:
    """With all ids leased another start is refused, and says where it stands who has them."""
    one = f"{uids[0]}"
    host.driver.start_instance(instance(uids=one))
    found = host.driver.validate_parameters(instance("web2", uids=one))
    assert [(f.code, f.path) for f in found] == [("pool-exhausted", "params.pool.uids")]
    assert str(leases) in (found[0].hint or "")
    assert host.driver.validate_parameters(instance(uids=one)) == hvcore.FindingSet(), "its own is not taken"


def test_an_id_that_somebody_lives_under(host: Any, instance: Any, uids: range) -> None:
    """An id under which a process runs is not handed out, leased or not."""
    command = ["setpriv", f"--reuid={uids[0]}", f"--regid={uids[0]}", "--clear-groups", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as squatter:
        assert squatter.stdin is not None
        assert squatter.stdout is not None
        squatter.stdin.write(b"\n")
        squatter.stdin.flush()
        assert squatter.stdout.read(1) == b"\n", "it has become who it is to be"
        found = host.driver.validate_parameters(instance(uids=f"{uids[0]}"))
        assert [f.code for f in found] == ["pool-exhausted"]
        squatter.stdin.close()
        squatter.wait()
    assert host.driver.validate_parameters(instance(uids=f"{uids[0]}")).ok


def _plan(name: str, pool: dict[str, str]) -> Any:
    given = hvcore.Instance(name=name, uuid=f"00000000-0000-4000-8000-{abs(hash(name)) % 10**12:012}")
    return PoolConfinement().plan(given, PoolParameters(**pool))


def test_a_race_for_the_last_one(pool: dict[str, str], uids: range, leases: Path) -> None:
    """Two plans that say the same id: the second start is told to try again, and the first one keeps it."""
    pool["uids"] = str(uids[0])
    first, second = _plan("one", pool), _plan("two", pool)
    assert first.launcher == second.launcher
    first.steps[0].do()
    with pytest.raises(hvcore.HostError, match="taken by instance one") as caught:
        second.steps[0].do()
    assert (caught.value.code, caught.value.retryable) == ("uid-taken", True)
    second.steps[0].undo()
    assert _leased(leases) == {uids[0]: "one"}
    first.steps[0].do()
    for _ in range(2):
        first.steps[0].undo()
    assert _leased(leases) == {}


def test_without_an_id_qemu_is_not_executed(pool: dict[str, str], uids: range) -> None:
    """Should everything else fail: what is executed is never root's."""
    pool["uids"] = str(uids[0])
    _plan("one", pool).steps[0].do()
    launcher = _plan("two", pool).launcher
    done = subprocess.run([*launcher, "/usr/bin/id", "-u"], capture_output=True, text=True, check=False)
    assert (done.returncode != 0, done.stdout) == (True, "")


def test_leases_of_an_earlier_boot(pool: dict[str, str], uids: range, leases: Path) -> None:
    """They count for nothing: their processes are gone."""
    pool["uids"] = str(uids[0])
    _plan("one", pool).steps[0].do()
    path = leases / str(uids[0])
    path.write_text(json.dumps({**json.loads(path.read_text()), "boot_id": "another"}))
    _plan("two", pool).steps[0].do()
    assert _leased(leases) == {uids[0]: "two"}


def test_a_damaged_lease(host: Any, instance: Any, uids: range, leases: Path) -> None:
    """Nobody knows whose it is, so its id is given to nobody."""
    leases.mkdir(mode=0o700)
    (leases / str(uids[0])).write_text("{")
    host.driver.start_instance(instance(uids=f"{uids[0]}-{uids[1]}"))
    assert _uid(host.pid()) == uids[1]
    host.driver.stop_instance("web1", force=True)
    assert (leases / str(uids[0])).read_text() == "{"


def test_a_directory_of_somebody_else(host: Any, instance: Any, pool: dict[str, str], leases: Path) -> None:
    """A directory that others could change is not used."""
    leases.mkdir()
    os.chown(leases, 23456, 23456)
    found = host.driver.validate_parameters(instance())
    assert [(f.code, f.path) for f in found] == [("directory-not-safe", "params.pool.directory")]
    (step,) = _plan("one", pool).steps
    with pytest.raises(hvcore.HostError, match="belongs to user 23456"):
        step.do()
    step.undo()
    assert list(leases.iterdir()) == []


def test_a_failed_start_gives_it_back(host: Any, instance: Any, leases: Path) -> None:
    """Whatever fails after the lease was taken, it is returned."""
    broken = instance()
    params = {**broken.params, "extra_args": "-device nosuch"}
    with pytest.raises(hvcore.SpawnFailed):
        host.driver.start_instance(host.instance(security_model="pool", params=params))
    assert _leased(leases) == {}


_KILLED = """
import json, os, signal, sys
import hvcore
from hvcore_kvm import process
process.spawn = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
driver = hvcore.load_driver("kvm", json.loads(sys.argv[1]))
driver.start_instance(json.loads(sys.argv[2]))
"""


def test_the_lease_of_a_killed_start_is_taken_back_by_recovery(
    host: Any, readable_firmware: Path, pool: dict[str, str], leases: Path
) -> None:
    """A host application killed between lease and QEMU leaves a lease that recovery takes back."""
    params = {"machine": "pc", "accel": "tcg", "firmware_image": str(readable_firmware), "pool": pool}
    definition = {"name": "web1", "params": params, "security_model": "pool"}
    command = [sys.executable, "-c", _KILLED, json.dumps(host.settings), json.dumps(definition)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    assert list(_leased(leases).values()) == ["web1"]
    (found,) = host.driver.recover().instances
    assert (found.operation, found.outcome) == ("start", "undone")
    assert _leased(leases) == {}


def test_an_instance_that_died_keeps_it_until_it_is_cleaned_up(host: Any, instance: Any, leases: Path) -> None:
    """Its id goes to nobody else before it is known to be gone."""
    console = host.start(instance())
    console.send(b"q")
    host.wait_end()
    assert list(_leased(leases).values()) == ["web1"]
    host.driver.stop_instance("web1", force=True)
    assert _leased(leases) == {}


POOLS = [
    ("20000", [(20000, 20000)]),
    ("20000-20999", [(20000, 20999)]),
    ("20000-20999,30000", [(20000, 20999), (30000, 30000)]),
    ("1000-65533,65535-4294967294", [(1000, 65533), (65535, 4294967294)]),
]


@pytest.mark.parametrize(("text", "expected"), POOLS)
def test_pools(text: str, expected: list[tuple[int, int]]) -> None:
    """Numbers and ranges, both ends included."""
    assert [(part[0], part[-1]) for part in parse_uids(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "999", "4294967295", "2-1", "20000-", "-20000", "20000,", "20000 ", "20000-20001-20002", "x"),
        *("65534", "65000-66000", "20000-20010,20005", "20000,20000", "2_0000", "+20000", "20,000", "99999999999"),
    ],
)
def test_what_is_no_pool(host: Any, text: str) -> None:
    """Users of the system, nobody, repetitions, and what is no number."""
    with pytest.raises(ValueError):
        parse_uids(text)
    found = host.driver.check_parameter_syntax(host.instance(security_model="pool", params={"pool": {"uids": text}}))
    assert [(f.code, f.path) for f in found] == [("invalid-value", "params.pool.uids")]


BAD = [
    ({}, [("missing-parameter", "params.pool.uids")]),
    ({"pool": {"uids": 20000}}, [("wrong-type", "params.pool.uids")]),
    ({"pool": {"uids": "20000", "directory": "relative"}}, [("invalid-value", "params.pool.directory")]),
    ({"pool": {"uids": "20000"}, "chroot": True}, [("contradiction", "params.chroot")]),
]


@pytest.mark.parametrize(("params", "expected"), BAD, ids=[str(index) for index in range(len(BAD))])
def test_bad_input(host: Any, params: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    """What is wrong is found before anything is started."""
    found = host.driver.check_parameter_syntax(host.instance(security_model="pool", params=params))
    assert [(f.code, f.path) for f in found] == expected
