"""Changing how a NIC of a running instance is connected on the host, while the guest keeps its card."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hvcore import Journal, Step
from hvcore_kvm.families import NicPlan


def can_move(old: NicPlan, new: NicPlan, *, other_mode: bool) -> bool:
    """Whether one connection can become another one.

    Args:
        old: how it is connected.
        new: how it is to be.
        other_mode: by another mode: then the interface has to be of the same make, for QEMU keeps it open.
    """
    if new.change is None:
        return False
    return not other_mode or (old.release is not None and new.release is not None and _make(old) == _make(new))


def move(journal: Journal, old: NicPlan, new: NicPlan) -> None:
    """Make one connection of a NIC into another one.

    Args:
        journal: makes it the old one again, when something fails.
        old: how it is connected.
        new: how it is to be.
    """
    for step in (*(old.change or ()), *_release(new, old)):
        journal.run(Step(name=f"{step.name} as it was", do=_nothing, undo=_undo_of(step)))
    for step in moves(old, new):
        journal.run(step)


def moves(old: NicPlan, new: NicPlan) -> Iterator[Step]:
    """The steps from one connection to another one, which may be done again."""
    yield from _release(old, new)
    yield from new.change or ()


def _release(old: NicPlan, new: NicPlan) -> tuple[Step, ...]:
    """What takes the interface out of where it is, if the new connection is somewhere else."""
    names = [[step.name for step in plan.release or ()] for plan in (old, new)]
    return () if names[0] == names[1] else old.release or ()


def _make(plan: NicPlan) -> tuple[object, ...]:
    plain = not plan.options and not plan.companions
    return plan.netdev.get("type"), frozenset(plan.netdev), plan.interface, plan.vnet_hdr, plain


def _undo_of(step: Step) -> Callable[[], None]:
    def undo() -> None:
        step.do()

    return undo


def _nothing() -> None:
    """What a step does that is there for its undo."""
