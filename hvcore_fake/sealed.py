"""Encrypted images of the modelled hypervisor: a header that knows its key, and blocks that show nothing of themselves.

The cipher is a model, as everything here: it is to be told from what is not encrypted, and keeps no secrets.
"""

from __future__ import annotations

import hashlib
import os

BLOCK = 1 << 16
HEADER = BLOCK
"""Bytes before the first block."""

_MAGIC = b"HVSEALED"


def key_of(secret_file: str) -> str:
    """What opens an image, made of the secret in a file: its one line.

    Raises:
        ValueError: it does not hold exactly one line.
        OSError: it cannot be read.
    """
    with open(secret_file, "rb") as file:
        line, _, rest = file.read(4097).partition(b"\n")
    if not line or rest or len(line) > 4096:
        raise ValueError(f"{secret_file} does not hold exactly one line")
    return hashlib.sha256(line).hexdigest()


def is_sealed(header: bytes) -> bool:
    """Whether the first bytes of a file are those of an encrypted image."""
    return header.startswith(_MAGIC)


def seal(fd: int, size: int, blocks: dict[int, bytes], key: str) -> None:
    """Write an encrypted image.

    Args:
        fd: an empty file, open for writing.
        size: bytes of the disk.
        blocks: what it holds, by number; the others hold zeros.
        key: what opens it.

    Raises:
        OSError: it cannot be written.
    """
    os.pwrite(fd, _MAGIC + _proof(key), 0)
    os.ftruncate(fd, HEADER + size)
    for number, block in blocks.items():
        os.pwrite(fd, _mixed(block, key, number), HEADER + number * BLOCK)


def unseal(fd: int, key: str) -> tuple[int, dict[int, bytes]]:
    """Bytes of a disk, and its blocks by number, without those that hold zeros only.

    Raises:
        ValueError: it is no encrypted image, or the key is that of another one.
        OSError: it cannot be read.
    """
    head = os.pread(fd, len(_MAGIC) + len(_proof(key)), 0)
    if not is_sealed(head):
        raise ValueError("it is not encrypted")
    if head != _MAGIC + _proof(key):
        raise ValueError("Invalid password, cannot unlock any keyslot")
    size = os.fstat(fd).st_size - HEADER
    found = {}
    for number in range(-(-size // BLOCK)):
        stored = os.pread(fd, BLOCK, HEADER + number * BLOCK)
        if any(stored):
            found[number] = _mixed(stored, key, number)
    return size, found


def _proof(key: str) -> bytes:
    return hashlib.sha256(b"proof" + key.encode()).digest()


def _mixed(block: bytes, key: str, number: int) -> bytes:
    stream = hashlib.shake_256(f"{key} {number}".encode()).digest(len(block))
    return (int.from_bytes(block) ^ int.from_bytes(stream)).to_bytes(len(block))
