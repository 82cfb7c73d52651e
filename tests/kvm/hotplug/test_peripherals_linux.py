"""A Linux guest sees a source of randomness and ports on virtio come, uses them, and lets go of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import hvcore
from hvcore import LiveParameters

pytestmark = [pytest.mark.qemu, pytest.mark.linux]

MODELS = ["none", "confined"] if os.geteuid() == 0 else ["none"]
PORT, CONSOLE = {"name": "org.example.0"}, {"name": "second", "console": True}
RNG = "/sys/class/misc/hw_random/rng_available"
NAMES = "cd /sys/class/virtio-ports; grep -H . */name"
PLACE = "readlink /sys/bus/virtio/drivers/virtio_rng/virtio* | grep -o '[^/]*/virtio'"
PATIENCE = 120.0


def _set(host: Any, **values: Any) -> hvcore.HotplugResult:
    return host.driver.hot_mod_device("web1", LiveParameters(values=values), timeout=60)


@pytest.fixture
def connect(host: Any, serial: Any) -> Iterator[Callable[[str], Any]]:
    """The other end of a port, on the host."""
    with contextlib.ExitStack() as stack:

        def attach(name: str) -> Any:
            client = serial(str(host.directory / f"state/kvm/instances/web1/virtio-port-{name}"))
            stack.callback(client.close)
            client._socket.settimeout(PATIENCE)
            return client

        yield attach


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_they_come_and_go(host: Any, boot: Any, whole: Any, connect: Any, machine: str, model: str) -> None:
    """Each is named by the guest's kernel, read and written, let go of, and nothing is left."""
    shell = boot(machine, security_model=model, params={"rng": False})
    before = whole()
    assert shell.run(f"cat {RNG}").split() in ([], ["tpm-rng-0"])
    assert _set(host, rng=True, rng_source="urandom", virtio_ports=[PORT, CONSOLE]).done
    shell.wait(f"grep -q virtio_rng {RNG}")
    assert shell.run("dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c") == "32"
    shell.wait("[ -c /dev/vport1p8 ] && [ -c /dev/hvc0 ]")
    assert set(shell.run(NAMES).splitlines()) >= {"vport1p8/name:org.example.0", "vport1p9/name:second"}
    port, console = connect("org.example.0"), connect("second")
    port.send(b"from the host\n")
    assert shell.run("head -n 1 /dev/vport1p8") == "from the host"
    shell.run("echo from the guest >/dev/vport1p8; echo from its console >/dev/hvc0")
    port.expect(b"from the guest\n")
    console.expect(b"from its console")
    assert _set(host, rng=False, rng_source=None, virtio_ports=None).done
    shell.wait(f"! grep -q virtio_rng {RNG}")
    shell.wait("[ ! -c /dev/vport1p8 ] && [ ! -c /dev/vport1p9 ]")
    assert whole() == before


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_the_same_names_after_a_cold_start(host: Any, boot: Any, machine: str) -> None:
    """What came while the guest ran is where it was and called what it was when it is there from the beginning."""
    base = {"rng": False, "virtio_ports": [{"name": "first"}]}
    shell = boot(machine, params=base)
    assert _set(host, virtio_ports=[{"name": "first"}, PORT, CONSOLE]).done
    # The second of three goes: the others keep their numbers.
    assert _set(host, rng=True, virtio_ports=[{"name": "first"}, CONSOLE]).done
    shell.wait(f"grep -q virtio_rng {RNG} && [ -c /dev/vport1p10 ] && [ ! -c /dev/vport1p9 ]")
    seen = (shell.run(PLACE), sorted(shell.run(NAMES).splitlines()), shell.run("ls /dev | grep hvc"))
    assert "vport1p10/name:second" in seen[1]
    assert seen[0]
    params = {**base, "rng": True, "virtio_ports": [{"name": "first"}, CONSOLE]}
    host.driver.stop_instance("web1", force=True)
    shell = boot(machine, params=params)
    shell.wait("[ -c /dev/vport1p10 ]")
    assert (shell.run(PLACE), sorted(shell.run(NAMES).splitlines()), shell.run("ls /dev | grep hvc")) == seen
    # There from the beginning, it can go all the same: it has a port of its own, and on pc any place will do. What
    # feeds it changes by letting go of the old one and taking the new one, at the same place.
    assert _set(host, rng_rate=1 << 20, rng_source="urandom").done
    shell.wait(f"grep -q virtio_rng {RNG}")
    assert shell.run(PLACE) == seen[0]
    assert shell.run("dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c") == "32"
    assert _set(host, rng=False, rng_source=None, rng_rate=None).done
    shell.wait(f"! grep -q virtio_rng {RNG}")
