"""The images of an instance that is not alive, by qemu-img: snapshots within one, and overlays written into one.

An image is never probed for its format. Its header names no other file: `hvcore_kvm.images` has looked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from hvcore import Deadline, HostError, OperationFailed
from hvcore_kvm.host_command import run_command

PROGRAM = "qemu-img"


@attrs.frozen(kw_only=True)
class StillImage:
    """What is within an image.

    Attributes:
        tags: the size of the memory that is in each snapshot, by name.
        bitmaps: names of the bitmaps that say what was written.
    """

    tags: Mapping[str, int]
    bitmaps: tuple[str, ...]


def look(path: str, deadline: Deadline) -> StillImage:
    """Read what is within an image.

    Raises:
        OperationFailed: it cannot be read; the program's own words.
    """
    output = _run(("info", "--output=json", "--image-opts", _options(path)), deadline)
    try:
        answer: Any = json.loads(output)
        tags = {str(row["name"]): int(row["vm-state-size"]) for row in answer.get("snapshots", ())}
        bitmaps = tuple(str(row["name"]) for row in answer["format-specific"]["data"].get("bitmaps", ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OperationFailed(f"{PROGRAM} says nothing of use about {path}", code="image-failed") from error
    return StillImage(tags=tags, bitmaps=bitmaps)


def tags_of(path: str, deadline: Deadline) -> Mapping[str, int]:
    """The snapshots in an image: the size of the memory that is in each, by name.

    Raises:
        OperationFailed: it cannot be read; the program's own words.
    """
    return look(path, deadline).tags


def take(path: str, tag: str, deadline: Deadline) -> None:
    """Take a snapshot of an image.

    Raises:
        OperationFailed: it cannot be taken; the program's own words.
    """
    _run(("snapshot", "-c", tag, "--image-opts", _options(path)), deadline)


def apply(path: str, tag: str, deadline: Deadline) -> None:
    """Make an image what it was when a snapshot was taken.

    Raises:
        OperationFailed: it cannot be done; the program's own words.
    """
    _run(("snapshot", "-a", tag, "--image-opts", _options(path)), deadline)


def delete(path: str, tag: str, deadline: Deadline) -> None:
    """Remove a snapshot from an image; one that is not there is no error.

    Raises:
        OperationFailed: it cannot be done; the program's own words.
    """
    if tag in tags_of(path, deadline):
        _run(("snapshot", "-d", tag, "--image-opts", _options(path)), deadline)


def commit(chain: Sequence[tuple[str, str]], deadline: Deadline) -> None:
    """Write the overlay on top into the image below it. It stays as it is, so this can be done again.

    Args:
        chain: paths and formats of the images, the topmost last. All of them: below a part of a cluster that is
            written is what the images further down have there.
        deadline: by when to be done.

    Raises:
        OperationFailed: it cannot be done; the program's own words.
    """
    options = []
    for number, (path, form) in enumerate(reversed(chain)):
        options.append(_options(path, form, "backing." * number))
    _run(("commit", "-d", "--image-opts", ",".join(options)), deadline)


def _options(path: str, form: str = "qcow2", below: str = "") -> str:
    escaped = path.replace(",", ",,")
    return f"{below}driver={form},{below}file.driver=file,{below}file.filename={escaped}"


def _run(words: tuple[str, ...], deadline: Deadline) -> str:
    try:
        return run_command((PROGRAM, *words), timeout=max(deadline.timeout(), 0.001))
    except HostError as error:
        hint = "install it: apt-get install qemu-utils" if "No such file" in error.message else error.hint
        raise OperationFailed(error.message, code="image-failed", hint=hint) from error
