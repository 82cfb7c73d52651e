"""``hv plan`` says what of a changed file can take effect now, and ``hv apply`` does exactly that."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from hvcore import Deadline
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu

_FILE = """
name = "web1"
memory = "{memory}"
vcpus = {vcpus}

[params]
accel = "tcg"
machine = "q35"
firmware_image = "{firmware}"
vcpus_max = 4
cpu_pin = "{pin}"
cdroms = [{{ path = "{image}" }}, {{}}]
on_panic = "{panic}"

[[disks]]
name = "root"
path = "{disk}"
format = "raw"
params = {{ throttle = {{ iops_total = {iops} }} }}

[[nics]]
name = "lan"
params = {{ link_up = {link} }}
"""


def _hv(host: Any, *words: str) -> tuple[int, Any]:
    roots = [f"--{name.replace('_', '-')}={value}" for name, value in host.settings.items()]
    command = [sys.executable, "-m", "hvcore.cli", *roots, "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, json.loads(done.stdout or done.stderr)


def test_what_is_planned_is_applied(host: Any) -> None:
    """Media, processors, pinning, endings, limits and links: planned, applied, and then not different any more."""
    path = host.directory / "web1.toml"
    images = [host.raw_disk("first.iso", 1 << 16).path, host.raw_disk("second.iso", 1 << 16).path]
    given = {"firmware": host.firmware, "disk": host.raw_disk("root.raw").path, "memory": "64MiB"}

    def write(**values: Any) -> None:
        path.write_text(_FILE.format(**given, **values))

    write(vcpus=1, pin="0", image=images[0], panic="shutdown", iops=100, link="true")
    assert _hv(host, "start", str(path))[0] == 0
    assert _hv(host, "apply", str(path)) == (0, {"name": "web1", "done": [], "failed": [], "left": []})
    given["memory"] = "96MiB"
    write(vcpus=2, pin="all", image=images[1], panic="pause", iops=200, link="false")
    changes = {change["path"]: change["effect"] for change in _hv(host, "plan", str(path))[1]["changes"]}
    assert changes == {
        "memory": "start",
        "vcpus": "hotplug",
        "params.cpu_pin": "live",
        "params.cdroms[0].path": "live",
        "params.on_panic": "live",
        "disks[0].params.throttle": "live",
        "nics[0].params.link_up": "live",
    }
    status, applied = _hv(host, "apply", str(path))
    assert [result["done"] for result in applied["done"]] == [True] * 5
    assert [change["path"] for change in applied["left"]] == ["memory"]
    assert status == 4
    assert images[1] in host.open_files()
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/query"), Deadline.after(30)) as client:
        assert len(client.execute("query-cpus-fast", deadline=Deadline.after(30))) == 2
    assert [change["path"] for change in _hv(host, "plan", str(path))[1]["changes"]] == ["memory"]
    changed = _hv(host, "hotplug", "set", "web1", "on_panic=none", 'cpu_pin="0"')[1]
    assert (changed["device"], changed["detail"]) == ("params", "changed: on_panic, cpu_pin")
    status, refused = _hv(host, "hotplug", "set", "web1", "machine=pc")
    assert status == 2
    assert refused["error"]["findings"][0]["path"] == "params.machine"


def test_devices_that_are_parameters(host: Any) -> None:
    """A file adds and removes them as a whole, words one at a time; the list shows them as the words say them."""
    path = host.directory / "web1.toml"

    def write(*lines: str) -> None:
        text = _FILE.partition("vcpus_max")[0].format(memory="64MiB", vcpus=1, firmware=host.firmware)
        path.write_text("\n".join((text, *lines)))

    write("rng = false")
    assert _hv(host, "start", str(path))[0] == 0
    write('rng_source = "urandom"', 'virtio_ports = [{ name = "first", console = true }]')
    status, applied = _hv(host, "apply", str(path))
    assert (status, applied["left"], len(applied["done"])) == (0, [], 1)
    assert _hv(host, "hotplug", "add", "web1", "port", "name=second")[0] == 0
    assert [(row["kind"], row["given"]) for row in _hv(host, "hotplug", "list", "web1")[1]["peripherals"]] == [
        ("rng", {"source": "urandom"}),
        ("port", {"name": "first", "console": True}),
        ("port", {"name": "second"}),
    ]
    assert _hv(host, "hotplug", "remove", "web1", "port", "name=first")[0] == 0
    status, pending = _hv(host, "hotplug", "remove", "web1", "rng", "--timeout", "100ms")
    assert (status, pending["done"]) == (4, False)
    assert [row["state"] for row in _hv(host, "hotplug", "list", "web1")[1]["peripherals"]] == ["removing", "present"]


def test_what_cannot_be_done_does_not_keep_the_rest(host: Any) -> None:
    """A guest that keeps a virtual CPU: that is said in QEMU's words, and all the rest is applied."""
    path = host.directory / "web1.toml"
    image = host.raw_disk("first.iso", 1 << 16).path
    given = {"firmware": host.firmware, "disk": host.raw_disk("root.raw").path, "memory": "64MiB", "image": image}

    def write(**values: Any) -> None:
        path.write_text(_FILE.format(**given, **values).replace('"q35"', '"pc"'))

    write(vcpus=1, pin="0", panic="shutdown", iops=100, link="true")
    assert _hv(host, "start", str(path))[0] == 0
    assert _hv(host, "hotplug", "vcpus", "web1", "2")[0] == 0
    write(vcpus=1, pin="all", panic="pause", iops=200, link="false")
    for number in (3, 0):
        status, applied = _hv(host, "apply", str(path))
        assert status == 1
        assert (len(applied["done"]), applied["left"]) == (number, [])
        assert all(result["done"] for result in applied["done"])
        (failed,) = applied["failed"]
        assert failed["what"] == "vcpus"
        assert "unplug request" in failed["error"]["message"]
        assert "its system" in failed["error"]["hint"]
    assert [change["path"] for change in _hv(host, "plan", str(path))[1]["changes"]] == ["vcpus"]


def test_a_device_that_is_on_its_way_out(host: Any) -> None:
    """While the guest is asked for a device that the file has, it is not applied; once it has gone, it is added."""
    path = host.directory / "web1.toml"
    disk, image = (host.raw_disk(name, 1 << 16).path for name in ("root.raw", "first.iso"))
    given = {"firmware": host.firmware, "disk": disk, "memory": "64MiB", "image": image}
    path.write_text(_FILE.format(**given, vcpus=1, pin="0", panic="shutdown", iops=100, link="true"))
    assert _hv(host, "start", str(path))[0] == 0
    uuid = next(row["uuid"] for row in _hv(host, "hotplug", "list", "web1")[1]["devices"] if row["kind"] == "disk")
    assert _hv(host, "hotplug", "remove", "web1", uuid, "--timeout", "10ms")[0] == 4
    status, applied = _hv(host, "apply", str(path))
    assert (status, [(result["device"], result["done"]) for result in applied["done"]]) == (4, [(uuid, False)])
    assert _hv(host, "reboot", "web1", "--reset")[0] == 0
    assert _hv(host, "recover", "web1")[0] == 0
    status, applied = _hv(host, "apply", str(path))
    assert (status, [(result["device"], result["done"]) for result in applied["done"]]) == (0, [(uuid, True)])
