"""What tests of graphical consoles share: certificates, ports, passwords, and starting an instance that has one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import Deadline
from hvcore_kvm.qmp import QmpClient

PATIENCE = 30.0
"""Seconds after which something that should happen is taken not to happen."""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an authority, a server of 127.0.0.1 and a client, made by OpenSSL."""
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=authority", "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        extensions = ["-addext", f"extendedKeyUsage={usage}", "-addext", "subjectAltName=IP:127.0.0.1"]
        extensions += ["-addext", "basicConstraints=critical,CA:FALSE"]
        signed = ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem", "-subj", f"/CN={name}"]
        openssl(*new, *extensions, *signed, "-keyout", f"{name}-key.pem", "-out", f"{name}-cert.pem")
    return directory


@pytest.fixture
def port(free_port: Callable[[], int]) -> int:
    return free_port()


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("sesame\n")
    return path


@pytest.fixture
def ask(host: Any) -> Callable[..., Any]:
    """Asks the QEMU of web1."""

    def execute(command: str, **arguments: Any) -> Any:
        path = str(host.directory / "state/kvm/instances/web1/query")
        with QmpClient.connect(path, Deadline.after(PATIENCE)) as client:
            return client.execute(command, arguments, deadline=Deadline.after(PATIENCE))

    return execute


@pytest.fixture
def start_console(host: Any) -> Callable[..., hvcore.Console]:
    """Starts web1 with a serial console and another one, and says how to reach that."""

    def start(kind: str, **parameters: Any) -> hvcore.Console:
        host.driver.start_instance(host.instance(consoles=["serial", kind], params={kind: parameters}))
        console: hvcore.Console = host.driver.get_instance_console("web1", kind=kind)
        return console

    return start
