"""Devices of a running instance: what can be plugged, and what became of a request."""

from __future__ import annotations

from typing import Literal

import attrs

from hvcore.model.instance import Disk, Nic

Device = Disk | Nic
"""What the hotplug operations take."""

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
        device: uuid of the device.
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
