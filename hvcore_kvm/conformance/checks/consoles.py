"""The endpoint of a console type."""

from __future__ import annotations

import os
import socket

from hvcore import Console, HypervisorError
from hvcore.conformance import PATIENCE, ConformanceFailure, Subject, check, expect, expect_error


@check("FA-13")
def a_client_is_accepted_while_it_runs(subject: Subject) -> None:
    """A client connects to the endpoint of a running instance, and cannot after the stop."""
    member = subject.profile.member
    name = subject.start()
    console = subject.driver.get_instance_console(name, member.name)
    expect(console.instance == name, f"the endpoint is one of {console.instance!r}, not of {name!r}")
    expect(console.kind == member.name, f"the endpoint is of kind {console.kind!r}, not {member.name!r}")
    try:
        _connect(console)
    except OSError as error:
        raise ConformanceFailure(f"the endpoint accepts nobody while the instance runs: {error}") from error
    expect(subject.lives(name), "the instance has ended with its first client")
    subject.driver.stop_instance(name, force=True)
    expect_error(HypervisorError, lambda: subject.driver.get_instance_console(name, member.name), "asking for it later")
    try:
        _connect(console)
    except OSError:
        return
    raise ConformanceFailure("the endpoint accepts a client after the stop")


def _connect(console: Console) -> None:
    """Attach to it in one of the ways it names, and let go.

    Raises:
        OSError: nobody is there.
    """
    if console.socket_path is not None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            folder = os.open(os.path.dirname(console.socket_path), os.O_PATH)
            try:
                client.connect(f"/proc/self/fd/{folder}/{os.path.basename(console.socket_path)}")
            finally:
                os.close(folder)
    elif console.address is not None and console.port is not None:
        with socket.create_connection((console.address, console.port), timeout=PATIENCE):
            pass
    elif console.device_path is not None:
        fd = os.open(console.device_path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            expect(os.isatty(fd), f"{console.device_path} is no terminal")
        finally:
            os.close(fd)
    else:
        raise ConformanceFailure("the endpoint names neither a socket, nor an address and port, nor a device")
