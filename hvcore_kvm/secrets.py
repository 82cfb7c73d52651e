"""Secrets from files: read when an instance is started, handed on by descriptor, written nowhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from hvcore import Finding, HostError

_LIMIT = 4096


def read_secret(path: str) -> bytes:
    """The one line of a file.

    Raises:
        HostError: it cannot be read, or does not hold exactly one line; its content is never said.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise HostError(f"{path} is not a file", code="secret-unusable")
            content = os.read(fd, _LIMIT + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}", code="secret-unusable") from error
    line, _, rest = content.partition(b"\n")
    if not line or rest or b"\0" in line or len(content) > _LIMIT:
        hint = "write the secret into it, and nothing else"
        raise HostError(f"{path} does not hold exactly one line", code="secret-unusable", hint=hint)
    return line


def open_secret(path: str) -> int:
    """A descriptor of a file in memory that holds the secret of a file; the caller closes it.

    Raises:
        HostError: the file cannot be used.
    """
    secret = read_secret(path)
    fd = os.memfd_create("secret", os.MFD_CLOEXEC)
    try:
        os.write(fd, secret)
        os.lseek(fd, 0, os.SEEK_SET)
    except OSError:
        os.close(fd)
        raise
    return fd


def check_secret(path: str, where: str) -> Iterator[Finding]:
    """What stands against using a file as a secret."""
    try:
        read_secret(path)
    except HostError as error:
        yield Finding(code=error.code, path=where, message=error.message, hint=error.hint)
