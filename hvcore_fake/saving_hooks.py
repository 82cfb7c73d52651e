"""`SavingHooks`: the hooks of saving and restoring, as `FakeDriver` has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from hvcore import Deadline, SavedInstance, Transition, hookimpl, instance_lock
from hvcore_fake.faults import FaultPlan
from hvcore_fake.saved_file import read_saved
from hvcore_fake.saving import OnProgress, restore, save
from hvcore_fake.transaction import Call
from hvcore_fake.world import World

T = TypeVar("T")


class SavingHooks:
    """Runs operations as calls on a world; those of saving and restoring are here."""

    _faults: FaultPlan
    _world: World

    @hookimpl
    def hv_save_instance(self, name: str, path: str, on_progress: OnProgress, deadline: Deadline) -> SavedInstance:
        """Save to a file."""
        return self._run("save_instance", name, deadline, lambda call: save(call, name, path, on_progress))

    @hookimpl
    def hv_restore_instance(
        self, path: str, paused: bool, force: bool, on_progress: OnProgress, deadline: Deadline
    ) -> Transition:
        """Start from a file."""
        name = read_saved(path).saved.instance.name
        locks = self._world.store.path("state/locks")
        with instance_lock(locks, name, "restore_instance", deadline):
            return self._run(
                "restore_instance",
                name,
                deadline,
                lambda call: restore(call, name, path, paused, force, on_progress),
            )

    def _run(self, operation: str, instance: str | None, deadline: Deadline | None, work: Callable[[Call], T]) -> T:
        call = Call(
            operation=operation,
            instance=instance,
            deadline=deadline or Deadline.after(None),
            faults=self._faults,
            world=self._world,
        )
        call.omits(None, "before")
        result = work(call)
        call.omits(None, "after")
        return result
