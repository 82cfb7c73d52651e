"""QEMU takes the certificates that ``hv tls init`` makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hvcore.certificates import make_certificates

pytestmark = pytest.mark.qemu


@pytest.mark.parametrize("endpoint", ["server", "client"])
@pytest.mark.parametrize("version", ["installed", "newer"])
def test_qemu_takes_them(request: pytest.FixtureRequest, tmp_path: Path, version: str, endpoint: str) -> None:
    """It checks their usage, purpose and constraints when it reads them; versions differ in how strictly."""
    qemu = "qemu-system-x86_64" if version == "installed" else str(request.getfixturevalue("newer_qemu"))
    [made] = make_certificates(str(tmp_path / "pki"), ["a.example"])
    given = f"tls-creds-x509,id=tls,dir={made.directory},endpoint={endpoint},verify-peer=on"
    command = [qemu, "-machine", "none", "-display", "none", "-nodefaults", "-monitor", "stdio", "-object", given]
    done = subprocess.run(command, input="quit\n", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
