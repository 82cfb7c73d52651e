"""The images of disks that are copied to a modelled host: what stands against them, making and taking them away."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator

import attrs

from hvcore import ALL_DISKS, Disk, Finding, HostError, Instance, MigrationPolicy, make_qcow2, param
from hvcore_fake.disks import check_secret
from hvcore_fake.images import image_identity
from hvcore_fake.parameters import secret_of
from hvcore_fake.record import MadeImage
from hvcore_fake.sealed import key_of, seal


@attrs.frozen(kw_only=True)
class SentImage:
    """What a source says of an image.

    Attributes:
        uuid: the disk.
        size: bytes that its guest sees.
        identity: what tells the image from every other, on whatever host that reaches it.
    """

    uuid: str = param(summary="The disk.")
    size: int = param(summary="Bytes that its guest sees.")
    identity: str = param(default="", summary="What tells the image from every other.")


def disks_to_copy(policy: MigrationPolicy, instance: Instance) -> tuple[Disk, ...]:
    """The disks of an instance that a policy has copied; those that are only read are not, with ``"all"``."""
    wanted = {uuid.lower() for uuid in policy.copy_disks}
    if ALL_DISKS in wanted:
        return tuple(disk for disk in instance.disks if disk.path is not None and not disk.read_only)
    return tuple(disk for disk in instance.disks if (disk.uuid or "").lower() in wanted)


def check_copies(policy: MigrationPolicy, instance: Instance, sent: Iterable[SentImage]) -> Iterator[Finding]:
    """Find what stands against copying disks to this host. Changes nothing.

    Args:
        policy: which disks.
        instance: the instance, as it will run here.
        sent: what the source says of its images.
    """
    yield from check_choice(policy, instance)
    known = {image.uuid.lower(): image for image in sent}
    chosen = disks_to_copy(policy, instance)
    for index, disk in enumerate(instance.disks):
        where = f"record.instance.disks[{index}]"
        if disk not in chosen:
            continue
        if disk.path is None or disk.read_only:
            message = "it is on a server, or only read; it is not copied"
            yield Finding(code="not-possible", path=where, message=message, hint="take it out of copy_disks")
            continue
        secret_file = secret_of(disk)
        if secret_file is not None and policy.tls is None:
            message = "it is encrypted where it is stored, and would be readable on its way"
            hint = "move it with TLS"
            yield Finding(code="not-possible", path=f"{where}.params.encryption", message=message, hint=hint)
        if secret_file is not None:
            yield from check_secret(secret_file, f"{where}.params.secret_file")
        image = known.get((disk.uuid or "").lower())
        if image is None or not 0 <= image.size < 2**62 or image.size % 512:
            message = f"the source does not say how large disk {disk.uuid} is"
            yield Finding(code="missing-parameter", path="record.images", message=message)
            continue
        yield from _check_place(disk.path, image, policy, f"{where}.path")


def check_choice(policy: MigrationPolicy, instance: Instance) -> Iterator[Finding]:
    """Find disks in a policy that an instance does not have."""
    known = {(disk.uuid or "").lower() for disk in instance.disks}
    for index, uuid in enumerate(policy.copy_disks):
        if uuid != ALL_DISKS and uuid.lower() not in known:
            message = f"{uuid} is no disk of the instance"
            hint = f"its disks are: {', '.join(sorted(known)) or 'none'}"
            yield Finding(code="no-disk", path=f"policy.copy_disks[{index}]", message=message, hint=hint)


def plan_images(
    policy: MigrationPolicy, instance: Instance, sent: Iterable[SentImage]
) -> tuple[tuple[MadeImage, ...], dict[str, SentImage]]:
    """The images to make, and what the source says of each, by path. Nothing stands against them."""
    known = {image.uuid.lower(): image for image in sent}
    made, images = [], {}
    for disk in disks_to_copy(policy, instance):
        path = disk.path or ""
        images[path] = known[(disk.uuid or "").lower()]
        if not os.path.lexists(path):
            part = os.path.join(os.path.dirname(path), f".hvcore-{secrets.token_hex(8)}")
            made.append(MadeImage(path=path, format=disk.format, part=part))
            continue
        there = os.stat(path)
        kept = there.st_size > 0
        made.append(MadeImage(path=path, format=disk.format, inode=there.st_ino, overwritten=kept))
    return tuple(made), images


def make_images(made: Iterable[MadeImage], images: dict[str, SentImage], disks: Iterable[Disk]) -> None:
    """Make them. What shows that one was made here stays beside it until `keep_images` or `remove_images`.

    Args:
        made: the images.
        images: what the source says of each, by path.
        disks: the disks that they are of.

    Raises:
        HostError: one cannot be made.
    """
    secrets_of = {disk.path: secret_of(disk) for disk in disks}
    for each in made:
        secret_file = secrets_of.get(each.path)
        try:
            key = "" if secret_file is None else key_of(secret_file)
            flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW if each.part else os.O_TRUNC
            fd = os.open(each.part or each.path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
            try:
                if key:
                    seal(fd, images[each.path].size, {}, key)
                elif each.format == "qcow2":
                    make_qcow2(fd, images[each.path].size)
                else:
                    os.ftruncate(fd, images[each.path].size)
            finally:
                os.close(fd)
            if each.part:
                os.link(each.part, each.path, follow_symlinks=False)
        except (OSError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) else error
            raise HostError(f"cannot make {each.path}: {words}", code="disk-unusable", hint="look there") from error


def keep_images(made: Iterable[MadeImage]) -> None:
    """The guest runs with them."""
    for each in made:
        if each.part:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each.part)


def remove_images(made: Iterable[MadeImage]) -> None:
    """Take away what was made for a guest that will never run here; none that anybody else has made."""
    for each in made:
        with contextlib.suppress(FileNotFoundError):
            if each.part and os.path.samestat(os.lstat(each.part), os.lstat(each.path)):
                os.unlink(each.path)
            elif not each.part and not each.overwritten and os.stat(each.path).st_ino == each.inode:
                os.truncate(each.path, 0)
        if each.part:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(each.part)


def _check_place(path: str, image: SentImage, policy: MigrationPolicy, where: str) -> Iterator[Finding]:
    if not os.path.lexists(path):
        folder = os.path.dirname(path)
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            message = f"no file can be made in {folder} on the destination"
            yield Finding(code="disk-missing", path=where, message=message, hint="make the directory there")
        return
    if not os.path.isfile(path):
        message = f"{path} is no file on the destination; a modelled disk is copied to files only"
        yield Finding(code="disk-not-a-file", path=where, message=message)
        return
    if image.identity and image.identity == image_identity(path):
        message = f"{path} is the very image that the source has; the copy would destroy it"
        yield Finding(code="same-image", path=where, message=message, hint="take it out of copy_disks")
    if os.stat(path).st_size and not policy.overwrite_disks:
        message = f"{path} is there already on the destination"
        hint = "remove it, or set overwrite_disks, which destroys what is in it"
        yield Finding(code="disk-exists", path=where, message=message, hint=hint)
