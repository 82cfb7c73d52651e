"""A check: a plain function on a `Subject` that holds a driver to one sentence of the contract."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable

import attrs

from hvcore.capabilities import Capability
from hvcore.conformance.failure import ConformanceFailure
from hvcore.conformance.profile import ConformanceProfile
from hvcore.conformance.subject import Subject
from hvcore.driver import Driver
from hvcore.errors import HypervisorError

_FACILITIES = frozenset(field.name for field in attrs.fields(ConformanceProfile))


@attrs.frozen(kw_only=True)
class Reason:
    """Why a check is not run, decided before anything of it has run.

    Attributes:
        kind: ``not-claimed`` when the driver does not claim the capability; ``absent`` when there is no such thing with
            this hypervisor; ``not-probed`` when the profile cannot provoke it here.
        text: the same for people.
    """

    kind: str
    text: str


@attrs.frozen(kw_only=True, eq=False)
class Check:
    """One check.

    Attributes:
        requirement: id of the sentence of the contract.
        name: name of the function.
        topic: module of the function.
        summary: what must hold, one sentence.
        function: the check itself.
        capabilities: what the driver has to claim for it.
        needs: what the profile has to be able to do for it: names of fields of `ConformanceProfile`.
        starts: it starts an instance, so it is run only where that is possible.
    """

    requirement: str
    name: str
    topic: str
    summary: str
    function: Callable[[Subject], None]
    capabilities: tuple[Capability, ...] = ()
    needs: tuple[str, ...] = ()
    starts: bool = True

    def run(self, subject: Subject) -> None:
        """Run it.

        Raises:
            ConformanceFailure: the requirement is not met.
        """
        try:
            self.function(subject)
        except ConformanceFailure as failure:
            failure.requirement = failure.requirement or self.requirement
            raise
        except HypervisorError as error:
            where = f" in {error.operation}" if error.operation else ""
            message = f"unexpected {type(error).__name__}{where}: {error}"
            raise ConformanceFailure(message, self.requirement) from error

    def reason_not_to_run(self, driver: Driver, profile: ConformanceProfile) -> Reason | None:
        """Why it is not run with a driver; ``None`` when it is."""
        for capability in self.capabilities:
            claim = driver.description.claim(capability)
            if not claim.offered:
                return Reason(kind="not-claimed", text=f"{capability.value} is not claimed: {claim.reason}")
        for need in self.needs:
            if need in profile.absent:
                return Reason(kind="absent", text=profile.absent[need])
        for need in self.needs:
            if getattr(profile, need) is None:
                return Reason(kind="not-probed", text=f"the profile of driver {profile.driver} has no {need}")
        return None


def check(
    requirement: str, *, capabilities: Iterable[Capability] = (), needs: Iterable[str] = (), starts: bool = True
) -> Callable[[Callable[[Subject], None]], Check]:
    """Make a check of a function; its docstring says what must hold.

    Args:
        requirement: id of the sentence of the contract.
        capabilities: what the driver has to claim for it.
        needs: what the profile has to be able to do for it.
        starts: it starts an instance.
    """
    needed = tuple(needs)
    if not set(needed) <= _FACILITIES:
        raise ValueError(f"a profile has no {', '.join(set(needed) - _FACILITIES)}")

    def decorate(function: Callable[[Subject], None]) -> Check:
        return Check(
            requirement=requirement,
            name=function.__name__,
            topic=function.__module__.rpartition(".")[2],
            summary=" ".join((function.__doc__ or "").split()),
            function=function,
            capabilities=tuple(capabilities),
            needs=needed,
            starts=starts,
        )

    return decorate


def checks_of(module: types.ModuleType) -> tuple[Check, ...]:
    """The checks of a module, in the order of its source."""
    return tuple(value for value in vars(module).values() if isinstance(value, Check))
