"""How far an operation is that takes its time."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Progress:
    """How far an operation is, sizes in bytes.

    Attributes:
        phase: what it is doing, in a word or two.
        done: bytes of this phase that are done.
        total: bytes of this phase at most; 0 when nobody can tell.
    """

    phase: str
    done: int
    total: int
