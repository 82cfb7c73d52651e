"""What happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from hvcore.deadline import Deadline
    from hvcore.model.events import EventBatch


@hookspec(firstresult=True)
def hv_events(cursor: str | None, deadline: Deadline) -> EventBatch:
    """Read events since a cursor, waiting for the first one until the deadline.

    Needs no watcher: events that happened while no host application ran are read as well.

    Args:
        cursor: from an earlier batch; ``None`` for everything the driver still has.
        deadline: how long to wait when there is nothing yet.

    Returns:
        Events and the next cursor; no events when the deadline passed.

    Errors: `InvalidParameters` when the cursor cannot be read.

    Capability: ``events``. Since: 0.1.
    """
