"""What the host's interface of a NIC counts, seen from the guest: a tap and a macvtap count the other way round."""

from __future__ import annotations

import os
import subprocess
import uuid
from typing import Any

import pytest

from hvcore import Nic
from hvcore_kvm import tap_name

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.linux,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make taps"),
]


@pytest.mark.parametrize("mode", ["bridged", "macvtap"])
def test_who_has_sent_and_who_received(host: Any, boot: Any, network: Any, mode: str) -> None:
    """What the guest sends to somebody who does not answer is sent, and not received."""
    far = network.namespace()
    cable = network.cable(far, f"{network.ip4(1)}/28")
    link = cable
    if mode == "bridged":
        link = network.link("type", "bridge")
        subprocess.run(["ip", "link", "set", cable, "master", link], check=True)
    nic = Nic(mode=mode, link=link, uuid=str(uuid.uuid4()))
    shell = boot([nic], f"hv.ip={network.ip4(7)}/28")
    assert shell.reaches(network.ip4(1))
    (before,) = host.driver.get_instance_stats("web1").nics
    assert (before.device, before.interface) == (nic.uuid, tap_name(nic.uuid or ""))
    assert min(before.sent_packets, before.received_packets) >= 3
    quiet = "echo 1 >/proc/sys/net/ipv4/icmp_echo_ignore_all"
    subprocess.run(["ip", "netns", "exec", far, "sh", "-c", quiet], check=True)
    shell.run(f"ping -c 8 -i 0.1 -s 1000 -W 1 {network.ip4(1)}")
    (after,) = host.driver.get_instance_stats("web1").nics
    sent, received = after.sent_bytes - before.sent_bytes, after.received_bytes - before.received_bytes
    assert sent >= 8 * 1000
    assert received < 4 * 1000
