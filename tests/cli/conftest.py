"""Runs ``hv`` as users do, with directories of its own, and leaves nothing running."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvcore.guests import write_firmware

sys.path.insert(0, str(Path(__file__).parent))
# The two modelled hosts are those of the fake driver's tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "fake"))

# Generous: it only bounds a test that fails.
DEADLINE = 120.0

Result = subprocess.CompletedProcess[str]
Hv = Callable[..., Result]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of ``hv``: all that it keeps is below ``tmp_path``."""
    own = {f"HV_{kind.upper()}_DIRECTORY": str(tmp_path / "hv" / kind) for kind in ("state", "data", "cache")}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HV_")}
    (tmp_path / "temporary").mkdir()
    return {**kept, **own, "TMPDIR": str(tmp_path / "temporary")}


@pytest.fixture
def hv(environment: dict[str, str]) -> Hv:
    """A function that runs ``hv`` with arguments to its end."""

    def run(*arguments: object, **options: Any) -> Result:
        command = [sys.executable, "-m", "hvcore.cli", *map(str, arguments)]
        given = {"env": environment, "timeout": DEADLINE, "stdin": subprocess.DEVNULL, **options}
        return subprocess.run(command, capture_output=True, text=True, check=False, **given)

    run.environment = environment  # type: ignore[attr-defined]
    return run


@pytest.fixture
def heeds_signals() -> Iterator[None]:
    """What is started heeds signals, though what started the tests may ignore them, as nohup and ``&`` do."""
    ignored = [n for n in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def state_files(tmp_path: Path) -> Callable[[], list[Path]]:
    """A function that lists everything in the state directory that is no directory."""
    return lambda: [path for path in (tmp_path / "hv" / "state").rglob("*") if not path.is_dir()]


@pytest.fixture
def instance_file(tmp_path: Path, hv: Hv, state_files: Callable[[], list[Path]]) -> Iterator[Path]:
    """The file of an instance with the firmware guest under TCG; afterwards it is stopped and nothing of it is left."""
    image = write_firmware(tmp_path / "firmware.rom")
    path = tmp_path / "web1.toml"
    path.write_text(
        f'name = "web1"\nmemory = "32MiB"\n[params]\nmachine = "pc"\naccel = "tcg"\nfirmware_image = "{image}"\n',
        encoding="utf-8",
    )
    yield path
    listed = json.loads(hv("list", "--json").stdout)["instances"]
    processes = [os.pidfd_open(row["pid"]) for row in listed if row["pid"] is not None]
    stopped = hv("stop", "web1", "--force")
    assert stopped.returncode == 0, stopped.stderr
    hv("cleanup", "web1")
    for pidfd in processes:
        assert select.select([pidfd], [], [], 0)[0], "its process still lives"
        os.close(pidfd)
    assert json.loads(hv("list", "--json").stdout) == {"instances": []}
    assert state_files() == []
