"""What happened to instances, readable again after the host application restarted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        name: the hypervisor's own name of it, for example ``SHUTDOWN``.
        instance: name of the instance.
        time: seconds since the epoch.
        data: the hypervisor's own data.
    """

    name: str
    instance: str
    time: float
    data: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class EventBatch:
    """Some events, and where to go on.

    Attributes:
        events: in the order in which they happened, per instance.
        cursor: hand it to the next call to get what came after; it stays valid when the host application restarts.
    """

    events: tuple[Event, ...]
    cursor: str
