"""Beside a confined QEMU its swtpm is confined as well: proved from outside, and by what it keeps."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore_kvm.companions import find_program

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(find_program("swtpm") is None, reason="swtpm is not installed"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can confine a process"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed"),
]

_CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_FIRST = 440_000 + 10 * (os.getpid() % 1000)


def _instance(host: Any, tmp_path: Path, model: str = "confined", uid: int = _FIRST) -> hvcore.Instance:
    own = {"confined": {"uids": str(uid), "directory": str(tmp_path / "leases")}} if model == "confined" else {}
    instance: hvcore.Instance = host.instance(security_model=model, params={"tpm": "tis", **own})
    return instance


def _swtpm(host: Any) -> int:
    record = json.loads((host.directory / "state" / "kvm" / "instances" / "web1" / "companions.json").read_text())
    rows = record.get("companions") or record["data"]["companions"]
    (pid,) = [row["identity"]["pid"] for row in rows if row["name"] == "swtpm"]
    return int(pid)


def _status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


def _state(host: Any) -> Path:
    (found,) = (host.directory / "data").rglob("tpm")
    return Path(found)


def test_it_may_do_nothing_and_sees_its_state_alone(host: Any, tmp_path: Path) -> None:
    """User of QEMU, no capability, none to be had; of the host's files the programs, and its state to write to."""
    host.start(_instance(host, tmp_path))
    pid = _swtpm(host)
    found = _status(pid)
    assert (found["Uid"], found["Gid"], found["Groups"]) == ([str(_FIRST)] * 4, [str(_FIRST)] * 4, [])
    assert found["Uid"] == _status(host.pid())["Uid"]
    assert [int(found[name][0], 16) for name in _CAPABILITIES] == [0] * 5
    assert found["NoNewPrivs"] == ["1"]
    for kind in ("mnt", "uts", "ipc"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    root, state = Path(f"/proc/{pid}/root"), _state(host)
    assert {path.name for path in root.iterdir()} >= {"usr"}
    assert not {path.name for path in root.iterdir()} & {"root", "home", "var", "run", "boot", "srv"}
    assert not (root / "etc" / "shadow").exists()
    assert [path.name for path in (root / str(state.parent).lstrip("/")).iterdir()] == ["tpm"]
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    writable = {mount[4] for mount in mounts if "ro" not in mount[5].split(",")}
    assert writable - {"/proc"} == {str(state)}
    assert state.stat().st_uid == _FIRST


def test_what_it_keeps_is_kept_whoever_it_runs_as(host: Any, tmp_path: Path) -> None:
    """Under another user id, unconfined, and confined again, the TPM is the same."""
    kept: list[bytes] = []
    for model, uid in (("confined", _FIRST), ("confined", _FIRST + 1), ("none", 0), ("confined", _FIRST)):
        host.start(_instance(host, tmp_path, model, uid))
        assert _status(_swtpm(host))["Uid"][0] == str(uid)
        host.driver.stop_instance("web1", force=True)
        (permanent,) = _state(host).glob("*.permall")
        kept.append(permanent.read_bytes())
    assert len(set(kept)) == 1


def test_a_start_that_fails_leaves_none(host: Any, tmp_path: Path) -> None:
    """It is ended with the start, and the next one finds its state."""
    failing = _instance(host, tmp_path)
    failing = hvcore.Instance(
        name=failing.name,
        memory=failing.memory,
        security_model="confined",
        params={**failing.params, "extra_args": "-device no-such-device"},
    )
    with pytest.raises(hvcore.SpawnFailed):
        host.driver.start_instance(failing)
    assert {path for path in host.files() if path.startswith("state")} == set()
    host.start(_instance(host, tmp_path))
    assert _status(_swtpm(host))["Uid"][0] == str(_FIRST)
