"""Devices of a running instance: what can be plugged, and what became of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from hvcore.model.instance import Disk, Nic


@attrs.frozen(kw_only=True)
class Medium:
    """What is to be in a removable drive; for `hot_mod_device`. Without path and URL the drive is emptied.

    Attributes:
        drive: the drive, by its place in the driver's parameters, such as ``cdroms[0]`` or ``floppy``.
        path: image file.
        url: image that is read over the network.
        force: open a tray that the guest has locked.
    """

    drive: str
    path: str | None = None
    url: str | None = None
    force: bool = False


@attrs.frozen(kw_only=True)
class Processors:
    """How many virtual CPUs the guest is to have; for `hot_mod_device`.

    Attributes:
        count: that many, at most the largest number it was started for.
    """

    count: int


@attrs.frozen(kw_only=True)
class LiveParameters:
    """New values of parameters that change while the guest runs; for `hot_mod_device`. The others stay as they are.

    Attributes:
        values: values by name, as in the ``params`` of an instance; ``None`` for what it is when not given.
        add: entries that come to the end of parameters which are lists of tables, by name.
        remove: entries that go from them, by name: of each table the first entry that has all its values.
    """

    values: Mapping[str, Any] = attrs.field(factory=dict)
    add: Mapping[str, Sequence[Mapping[str, Any]]] = attrs.field(factory=dict)
    remove: Mapping[str, Sequence[Mapping[str, Any]]] = attrs.field(factory=dict)


Device = Disk | Nic | Medium | Processors | LiveParameters
"""What the hotplug operations take; all but disks and NICs are there already, and can only be modified."""

Action = Literal["add", "remove", "modify"]
"""What a hotplug operation does."""


@attrs.frozen(kw_only=True)
class HotplugSupport:
    """Whether something can be plugged now.

    Attributes:
        supported: it can.
        reasons: why not, for people.
    """

    supported: bool
    reasons: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class HotplugResult:
    """What became of a hotplug request.

    Attributes:
        device: uuid of the device; the drive of a medium, ``vcpus``, or ``params``.
        done: it has happened; ``False`` when the guest has been asked and has not answered yet (*pending*).
        detail: for people.
    """

    device: str
    done: bool
    detail: str = ""


@attrs.frozen(kw_only=True)
class ResizeResult:
    """A disk was grown: its uuid and its size in bytes before and after."""

    device: str
    before: int
    after: int


@attrs.frozen(kw_only=True)
class BalloonResult:
    """Memory of the guest in bytes: what was asked for and what was reached."""

    requested: int
    reached: int
