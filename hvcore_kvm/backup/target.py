"""Where a backup goes: new qcow2 files in a directory, or the exports of an NBD server."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from hvcore import Deadline, Finding
from hvcore_kvm.backup.checkpoints import DiskNode
from hvcore_kvm.runtime import BackupFile
from hvcore_kvm.saving.part import part_of
from hvcore_kvm.storage_uri import parse_uri

_SCHEMES = ("nbd", "nbd+unix")
_EACH = "{uuid}"
_MAGIC = b"NBDMAGIC"
_GREETING = 5.0
"""Seconds within which a server has to greet."""


@attrs.frozen(kw_only=True)
class DiskTarget:
    """Where the copy of one disk goes.

    Attributes:
        location: path of the file, or the URI.
        options: options of QEMU's block driver for an export; ``None`` for a file.
        base: name of the file that this one is to be on; ``None`` for none.
    """

    location: str
    options: dict[str, Any] | None = None
    base: str | None = None

    def file(self, ident: str) -> BackupFile | None:
        """The file while it is written, if it is one.

        Args:
            ident: tells this copy from every other.
        """
        if self.options is not None:
            return None
        return BackupFile(part=part_of(self.location, ident), path=self.location)


def file_name(uuid: str, checkpoint: str | None) -> str:
    """The name of the file of one disk: with it the next one finds what it is on, wherever the directory is."""
    return f"{uuid}.{checkpoint}.qcow2" if checkpoint else f"{uuid}.qcow2"


def plan_targets(
    target: str, nodes: Sequence[DiskNode], checkpoint: str | None, since: str | None
) -> tuple[tuple[DiskTarget, ...], list[Finding]]:
    """Where the copy of each disk goes, and everything that stands against it.

    Args:
        target: the directory or URI.
        nodes: the disks.
        checkpoint: the checkpoint that begins with the backup.
        since: the one it begins from.
    """
    if "://" in target:
        return _exports(target, nodes)
    base = [None if since is None else file_name(node.uuid, since) for node in nodes]
    paths = [os.path.join(target, file_name(node.uuid, checkpoint)) for node in nodes]
    found = tuple(DiskTarget(location=path, base=name) for path, name in zip(paths, base, strict=True))
    return found, [*_against_directory(target, paths)]


def _exports(target: str, nodes: Sequence[DiskNode]) -> tuple[tuple[DiskTarget, ...], list[Finding]]:
    if len(nodes) > 1 and _EACH not in target:
        message = f"{len(nodes)} disks do not go to one export"
        hint = f"write {_EACH} where the uuid of each disk belongs, or name one disk"
        return (), [Finding(code="contradiction", path="target", message=message, hint=hint)]
    found = []
    for node in nodes:
        uri = target.replace(_EACH, node.uuid)
        try:
            if uri.partition(":")[0] not in _SCHEMES:
                raise ValueError(f"is neither a directory nor one of {', '.join(_SCHEMES)}")
            options = parse_uri(uri)
        except ValueError as error:
            return (), [Finding(code="invalid-value", path="target", message=f"{uri[:100]!r} {error}")]
        found.append(DiskTarget(location=uri, options=options))
    return tuple(found), []


def _against_directory(directory: str, paths: Sequence[str]) -> Iterator[Finding]:
    if not os.path.isdir(directory):
        yield Finding(
            code="directory-missing", path="target", message=f"there is no directory {directory}", hint="make it first"
        )
        return
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        message = f"no file can be made in {directory}"
        yield Finding(code="directory-not-writable", path="target", message=message, hint="name another directory")
    limit = os.pathconf(directory, "PC_NAME_MAX")
    for path in paths:
        if os.path.lexists(path):
            hint = "name another directory, or another checkpoint"
            yield Finding(code="file-exists", path="target", message=f"there is something at {path}", hint=hint)
        if len(os.fsencode(os.path.basename(path))) > limit:
            message = f"the file system of {directory} has no names as long as {os.path.basename(path)}"
            yield Finding(code="name-too-long", path="target", message=message, hint="name the checkpoint shorter")


def check_server(target: DiskTarget, deadline: Deadline) -> Iterator[Finding]:
    """Find out whether an NBD server answers. QEMU would stand still, and its guest with it, until one does."""
    server = (target.options or {}).get("server") or {}
    until = deadline.sooner(_GREETING)
    try:
        with _connect(server, until) as connection:
            connection.settimeout(max(until.timeout(), 0.001))
            if connection.recv(len(_MAGIC), socket.MSG_WAITALL) != _MAGIC:
                raise OSError(errno.EPROTO, "what answers is no NBD server")
    except OSError as error:
        message = f"no NBD server answers at {target.location}: {error.strerror or error}"
        yield Finding(code="server-unreachable", path="target", message=message)


def _connect(server: Mapping[str, Any], until: Deadline) -> socket.socket:
    if server.get("type") == "inet":
        return socket.create_connection((server["host"], int(server["port"])), max(until.timeout(), 0.001))
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(max(until.timeout(), 0.001))
        connection.connect(server["path"])
    except BaseException:
        connection.close()
        raise
    return connection


def remove_files(files: Sequence[BackupFile], *, published: bool) -> None:
    """Remove what a backup has made and nobody is to have.

    Args:
        files: what it makes.
        published: they were about to get their names, or have got them: those are removed as well.
    """
    for file in files:
        # What is there may be somebody else's by now.
        if published and _is(file.path, file):
            with contextlib.suppress(OSError):
                os.unlink(file.path)
        with contextlib.suppress(OSError):
            os.unlink(file.part)


def all_there(files: Sequence[BackupFile]) -> bool:
    """All files have got their names; true where there are none to make."""
    return all(_is(file.path, file) for file in files)


def _is(path: str, file: BackupFile) -> bool:
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return file.inode != 0 and (found.st_dev, found.st_ino) == (file.device, file.inode)
