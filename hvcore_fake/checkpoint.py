"""What is written down about checkpoints of modelled disks."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Tracked:
    """What was written to a disk since a checkpoint.

    Attributes:
        name: name of the checkpoint; empty for the one of a backup that is not complete.
        ident: uuid of the disk.
        lasting: its image keeps it when the process ends in order.
        blocks: numbers of the blocks that were written.
        usable: all of them are known.
    """

    name: str
    ident: str
    lasting: bool
    blocks: tuple[int, ...] = ()
    usable: bool = True


@attrs.frozen(kw_only=True)
class KeptCheckpoints:
    """What the images of an instance keep of its checkpoints; while a process has them, they are not usable."""

    checkpoints: tuple[Tracked, ...] = ()
