"""Console type virtconsole: a Linux guest sees hvc0, and a client exchanges bytes with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.guests import LINUX_COMMAND_LINE, LINUX_PROMPT, LinuxGuest

pytestmark = pytest.mark.qemu


@pytest.mark.linux
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_a_client_exchanges_bytes_with_hvc0(host: Any, linux: LinuxGuest, machine: str) -> None:
    """A shell of the guest on hvc0 answers on the socket, and its words are in the log."""
    params = {"machine": machine, "accel": "tcg", "kernel": str(linux.kernel), "initrd": str(linux.initrd)}
    instance = hvcore.Instance(
        name="web1",
        memory="256MiB",
        consoles=["serial", "virtconsole"],
        params={**params, "cmdline": LINUX_COMMAND_LINE},
    )
    host.driver.start_instance(instance, paused=True)
    serial = host.attach("web1")
    serial._socket.settimeout(120)
    host.driver.resume_instance("web1")
    serial.expect(LINUX_PROMPT)
    console = host.driver.get_instance_console("web1", "virtconsole")
    assert console.kind == "virtconsole"
    assert console.holder is None
    path = console.socket_path
    client = type(serial)(path)
    host.consoles.append(client)
    serial.send(
        b"mknod /dev/hvc0 c 229 0 2>/dev/null; (read word; echo heard=$word) </dev/hvc0 >/dev/hvc0 & echo up=$?\n"
    )
    serial.expect(b"up=0")
    client.send(b"sesame\n")
    client.expect(b"heard=sesame")
    holder = host.driver.get_instance_console("web1", "virtconsole").holder
    assert holder is not None
    assert holder.pid == os.getpid()
    # QEMU writes to the client first, and to the log after that.
    looking = hvcore.Deadline.after(30)
    while b"heard=sesame" not in Path(console.log_path).read_bytes():
        assert not looking.expired
    host.driver.disconnect_console("web1", "virtconsole")
    while client._socket.recv(4096):
        pass


def test_the_port_on_aarch64(host: Any) -> None:
    """The machine virt has the port too."""
    if shutil.which("qemu-system-aarch64") is None:
        pytest.skip("qemu-system-aarch64 is not installed")
    params = {"machine": "virt", "arch": "aarch64", "accel": "tcg", "cpu_model": "cortex-a57"}
    host.driver.start_instance(hvcore.Instance(name="web1", memory="64MiB", consoles=["virtconsole"], params=params))
    assert host.driver.get_instance_console("web1").kind == "virtconsole"


def test_the_log(host: Any) -> None:
    """With log off nothing is kept, log_size is checked."""
    plan = host.driver.plan_start(host.instance(consoles=["virtconsole"], params={"virtconsole": {"log": False}}))
    assert not any("virtconsole.log" in fd.name for fd in plan.fds)
    wrong = host.instance(consoles=["virtconsole"], params={"virtconsole": {"log_size": 1}})
    found = [finding.path for finding in host.driver.check_parameter_syntax(wrong)]
    assert found == ["params.virtconsole.log_size"]
