"""Two host applications and the command line on the same instances at once: nothing is lost, nothing runs twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import hvcore

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

SECONDS = 60.0

LIMIT = 240.0
"""Seconds in which each side has done enough, however slow the machine."""

ENOUGH = 6
"""Starts of each application, and commands that did what they were for."""

NAMES = ("web1", "web2", "web3")
DOCUMENTED = {
    "already-running",
    "not-running",
    "instance-busy",
    "wrong-state",
    "instance-not-found",
    "deadline-exceeded",
    # A paused guest that another side has reset cannot be asked to power off, which a soft reboot needs.
    "unsupported-operation",
}

_APPLICATION = """
import json, random, sys, time
import hvcore
settings, definitions, seed, seconds, limit, enough, documented = (json.loads(word) for word in sys.argv[1:])
chance = random.Random(seed)
outcomes = {}
begun = time.monotonic()

def goes_on():
    passed = time.monotonic() - begun
    return passed < seconds or (outcomes.get("start done", 0) < enough and passed < limit)

with hvcore.load_driver("kvm", settings) as driver:
    while goes_on():
        definition = chance.choice(definitions)
        name = definition["name"]
        operation, call = chance.choice([
            ("start", lambda: driver.start_instance(definition, timeout=20)),
            ("start", lambda: driver.start_instance(definition, timeout=0.1)),
            ("stop", lambda: driver.stop_instance(name, force=True)),
            ("graceful", lambda: driver.stop_instance(name, timeout=2)),
            ("reboot", lambda: driver.reboot_instance(name, mode=chance.choice(["soft", "hard", "reset"]), timeout=5)),
            ("pause", lambda: driver.pause_instance(name, timeout=15)),
            ("resume", lambda: driver.resume_instance(name, timeout=15)),
            ("info", lambda: driver.get_instance_info(name)),
            ("infos", lambda: driver.get_all_instances_info()),
            ("list", lambda: driver.list_instances()),
            ("cleanup", lambda: driver.cleanup_instance(name, timeout=1)),
            ("recover", lambda: driver.recover(name, timeout=15)),
        ])
        try:
            call()
            outcome = "done"
        except hvcore.HypervisorError as error:
            outcome = error.code
            if outcome not in documented:
                print(repr(error), error, file=sys.stderr)
        outcomes[f"{operation} {outcome}"] = outcomes.get(f"{operation} {outcome}", 0) + 1
print(json.dumps(outcomes))
"""

_HV = (
    ("start", "FILE"),
    ("stop", "--force", "NAME"),
    ("stop", "--timeout", "2s", "NAME"),
    ("reboot", "--hard", "NAME"),
    ("pause", "NAME"),
    ("resume", "NAME"),
    ("list", "--long"),
    ("info", "NAME"),
)


def _running(name: str, firmware: str) -> list[int]:
    """Processes of one instance of this test, by their command line: an observer of its own, not the driver's way."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            mine = f"guest={name},debug-threads=on".encode() in words and firmware.encode() in words
            if mine and words[0].endswith(b"qemu-system-x86_64") and state != "Z":
                found.append(int(entry))
    return found


def test_three_at_once_for_a_minute(host: Any, tmp_path: Path) -> None:
    """Random operations from three sides end in documented errors only, and never in two processes of one instance."""
    params = {"machine": "pc", "accel": "tcg", "firmware_image": str(host.firmware)}
    definitions = [{"name": name, "memory": "32MiB", "params": params} for name in NAMES]
    for definition in definitions:
        lines = [f'{key} = "{value}"' for key, value in params.items()]
        text = f'name = "{definition["name"]}"\nmemory = "32MiB"\n[params]\n' + "\n".join(lines)
        (tmp_path / f"{definition['name']}.toml").write_text(text)
    applications = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", _APPLICATION),
                *map(json.dumps, (host.settings, definitions, seed, SECONDS, LIMIT, ENOUGH, sorted(DOCUMENTED))),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    chance = random.Random(3)
    ended: Counter[int] = Counter()
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < SECONDS or (ended[0] < ENOUGH and passed < LIMIT):
        name = chance.choice(NAMES)
        template = chance.choice(_HV)
        arguments = [str(tmp_path / f"{name}.toml") if w == "FILE" else name if w == "NAME" else w for w in template]
        roots = [f"--{kind}-directory={host.settings[f'{kind}_directory']}" for kind in ("state", "data", "cache")]
        command = [sys.executable, "-m", "hvcore.cli", *roots, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode in (0, 1, 3, 4, 5), f"{arguments}: {done.returncode} {done.stderr}"
        assert done.returncode != 1 or "in time" in done.stderr or "within" in done.stderr, done.stderr
        ended[done.returncode] += 1
        for each in NAMES:
            # Looked at twice: between two looks of a listing of /proc an old process may end and a new one begin.
            assert len(_running(each, str(host.firmware))) <= 1 or len(_running(each, str(host.firmware))) <= 1
    outcomes: Counter[str] = Counter()
    for application in applications:
        out, err = application.communicate(timeout=LIMIT)
        assert application.returncode == 0, err
        assert err == ""
        outcomes.update(json.loads(out))
    assert {outcome.split()[1] for outcome in outcomes} <= {"done", *DOCUMENTED}
    assert outcomes["start done"] >= 2 * ENOUGH
    assert ended[0] >= ENOUGH
    # Whatever is there now, the driver accounts for it, and its account is right; a guest may still obey one that has
    # not waited for it, and end in between.
    deadline = hvcore.Deadline.after(SECONDS)
    while True:
        listed = {row.name: [row.pid] for row in host.driver.list_instances().instances if row.pid is not None}
        there = {name: _running(name, str(host.firmware)) for name in NAMES}
        if there == {name: listed.get(name, []) for name in NAMES}:
            break
        assert not deadline.expired, f"the driver lists {listed}, and there are {there}"
    for name in NAMES:
        host.driver.stop_instance(name, force=True)
        assert _running(name, str(host.firmware)) == []
        host.driver.cleanup_instance(name)
    assert hvcore.InstanceListing(instances=()) == host.driver.list_instances()
    assert host.files() == set()
