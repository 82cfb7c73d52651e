"""One operation on the modelled world: its journal, its effects, and the faults that strike between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs

from hvcore import Deadline, DeadlineExceeded, Journal, Step
from hvcore_fake.faults import FaultPlan, HostCrash
from hvcore_fake.world import World

JOURNALS = "state/journals/"
JOURNAL_SUFFIX = ".jsonl"


def journal_key(name: str) -> str:
    """The journal of the operation on an instance that is under way, or was left half done."""
    return f"{JOURNALS}{name}{JOURNAL_SUFFIX}"


@attrs.define(kw_only=True)
class Call:
    """One call of an operation, and the points of it at which a fault can strike.

    Attributes:
        operation: its name.
        instance: the instance it is about, ``None`` for those that are about none.
        deadline: by when it must be done.
        faults: the plan.
        world: where it happens.
        lying: every effect of it is left out.
    """

    operation: str
    instance: str | None
    deadline: Deadline
    faults: FaultPlan
    world: World
    lying: bool = False

    def omits(self, effect: str | None, when: str) -> bool:
        """Let a fault strike at this point; says whether the effect is to be left out.

        Raises:
            HostCrash: the host application is killed here.
            DeadlineExceeded: the effect hangs until the deadline.
            Exception: whatever the fault raises.
        """
        fault = self.faults.meet(self.operation, self.instance, effect, when)
        if fault is None:
            return self.lying
        if fault.kind == "raise":
            raise fault.make_error()
        if fault.kind == "crash":
            raise HostCrash(f"{when} {effect or self.operation}")
        if fault.kind == "hang":
            # Virtual time: a hang takes as long as the deadline allows, and no time of the test.
            self.world.advance(self.deadline.timeout())
            raise DeadlineExceeded(f"{effect or self.operation} did not end in time: {fault.message}")
        self.lying = self.lying or effect is None
        return True

    def in_time(self) -> None:
        """Go on only before the deadline.

        Raises:
            DeadlineExceeded: it has passed.
        """
        if self.deadline.expired:
            raise DeadlineExceeded(f"{self.operation} was not done in time")


class Transaction:
    """The effects of one operation, each a step of its journal."""

    def __init__(self, journal: Journal, call: Call) -> None:
        self._journal = journal
        self._call = call

    def effect(
        self,
        name: str,
        do: Callable[[], object],
        *,
        files: Iterable[str] = (),
        undo: Callable[[], None] | None = None,
    ) -> None:
        """Carry out one effect.

        Args:
            name: one of `hvcore_fake.EFFECTS`.
            do: does it.
            files: keys it writes; what they held is put back if the operation fails, or dies.
            undo: takes it back, where putting files back does not.
        """
        store = self._call.world.store
        images = store.images(files)

        def carry_out() -> None:
            if not self._call.omits(name, "before"):
                do()
                self._call.omits(name, "after")

        def put_back() -> None:
            store.restore(images)

        takes_back = undo if undo is not None else put_back if images else None
        self._journal.run(Step(name=name, do=carry_out, undo=takes_back, details={"images": images}))


@contextlib.contextmanager
def transaction(call: Call, name: str, details: Mapping[str, Any] | None = None) -> Iterator[Transaction]:
    """Carry out effects; an error undoes them in reverse, a crash leaves the journal for whoever comes next.

    Args:
        call: the operation. The caller holds the world's lock.
        name: the instance.
        details: what a later process needs to know about the whole.
    """
    call.world.store.make(JOURNALS)
    with contextlib.ExitStack() as stack:
        journal = stack.enter_context(Journal(call.world.store.path(journal_key(name)), call.operation, details))
        try:
            effects = Transaction(journal, call)
            yield effects
            effects.effect("commit", _nothing)
        except HostCrash:
            # SIGKILL: nobody is left to undo anything.
            stack.pop_all()
            raise


def _nothing() -> None:
    """Between the last effect and the end of the journal."""
