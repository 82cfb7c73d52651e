"""A start runs no program but QEMU: taps, bridges, leases, cgroups and namespaces are asked of the kernel itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/net/tun"), reason="only root makes taps"),
]

_PROGRAM = """
    import json, os, sys
    import hvcore

    settings, definition = json.load(sys.stdin)
    begun = []

    def note(event, args):
        if event in ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"):
            begun.append([event, *map(os.fsdecode, args[1])] if event == "os.posix_spawn" else [event])

    with hvcore.load_driver("kvm", settings) as driver:
        for turn in ("what QEMU can do is asked once", "and here it is known"):
            driver.start_instance(definition)
            driver.stop_instance(definition["name"], force=True)
            if not begun:
                sys.addaudithook(note)
        driver.cleanup_instance(definition["name"])
    print(json.dumps(begun))
"""


@pytest.fixture
def bridge() -> Iterator[str]:
    name = f"hvt{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


def test_a_confined_and_bridged_start_runs_qemu_alone(host: Any, bridge: str, tmp_path: Path) -> None:
    """In all threads of the host application; the programs before QEMU's own execute it, in its process."""
    first = 430_000 + 10 * (os.getpid() % 1000)
    pool = {"uids": f"{first}-{first + 5}", "directory": str(tmp_path / "leases")}
    firmware = {"machine": "pc", "accel": "tcg", "firmware_image": str(host.firmware)}
    definition = {
        "name": "web1",
        "memory": "64MiB",
        "security_model": "confined",
        "consoles": ["serial", "vnc"],
        "params": {**firmware, "confined": pool},
        "nics": [{"mode": "bridged", "link": bridge}],
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(line[4:] for line in _PROGRAM.splitlines())],
        input=json.dumps([host.settings, definition]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (only,) = json.loads(done.stdout)
    assert only[0] == "os.posix_spawn"
    assert any("qemu-system" in os.path.basename(word) for word in only[1:])
