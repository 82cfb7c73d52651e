"""A disk that is encrypted as a whole (LUKS), made and opened by ``qemu-img``, which the driver does not use for it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator

from hvcore import Disk, EncryptedDisk

_PATIENCE = 60.0
_QUICKLY = 10
"""Milliseconds that trying a secret takes: nobody is to be kept out."""

_ATTEMPTS = 100
_UNMEASURED = "Unable to get accurate CPU usage"
"""What it says when it has seen no time pass on trying a secret, where the kernel counts that in coarse steps."""


def encrypted_disk(directory: str, content: bytes, secret: bytes) -> EncryptedDisk:
    """Make one.

    Args:
        directory: for the image and the file with the secret.
        content: what is in it.
        secret: what opens it.

    Raises:
        RuntimeError: ``qemu-img`` cannot make it.
    """
    path, secret_file = (os.path.join(directory, name) for name in ("encrypted.raw", "secret"))
    with open(secret_file, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(secret)
    with _file(directory, content) as plain:
        options = ("-o", f"key-secret=key,iter-time={_QUICKLY}")
        for _ in range(_ATTEMPTS):
            done = _convert(secret_file, "-f", "raw", "-O", "luks", *options, plain, path)
            if _UNMEASURED not in done.stderr:
                break
    if done.returncode:
        raise RuntimeError(f"qemu-img makes no encrypted image: {done.stderr}")

    def opens(secret: bytes) -> bytes | None:
        image = f"driver=luks,key-secret=key,file.driver=file,file.filename={path}"
        with _file(directory, secret) as key, _file(directory, b"") as plain:
            done = _convert(key, "--image-opts", image, "-O", "raw", plain)
            if done.returncode and "Invalid password" not in done.stderr and "not in LUKS format" not in done.stderr:
                raise RuntimeError(f"qemu-img cannot read {path}: {done.stderr}")
            with open(plain, "rb") as file:
                return None if done.returncode else file.read()

    disk = Disk(path=path, format="raw", params={"encryption": True, "secret_file": secret_file})
    return EncryptedDisk(disk=disk, secret_file=secret_file, opens=opens)


@contextlib.contextmanager
def _file(directory: str, content: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        file.write(content)
        file.flush()
        yield file.name


def _convert(secret_file: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["qemu-img", "convert", "--object", f"secret,id=key,file={secret_file}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
