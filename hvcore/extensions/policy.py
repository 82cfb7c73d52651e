"""`Policy`: which operations are allowed, by rules."""

from __future__ import annotations

import contextlib
import fnmatch
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import attrs

from hvcore.errors import PolicyDenied
from hvcore.hookspecs.markers import hookimpl
from hvcore.operation import OperationCall

STARTS = frozenset({"start_instance", "restore_instance", "accept_instance"})
"""Operations after which one more instance may be alive."""


@attrs.frozen
class Deny:
    """Refuses the operations that match.

    Attributes:
        operation: pattern of the operation's name: ``*`` and ``?`` as in a shell.
        instance: pattern of the instance's name; ``None`` for all operations, also those about no instance.
        driver: pattern of the driver's name.
        reason: why, for the error.
        hint: what the caller can do about it, for the error.
    """

    operation: str = "*"
    instance: str | None = attrs.field(default=None, kw_only=True)
    driver: str = attrs.field(default="*", kw_only=True)
    reason: str = attrs.field(default="", kw_only=True)
    hint: str | None = attrs.field(default=None, kw_only=True)

    def __call__(self, call: OperationCall) -> PolicyDenied | None:
        """The error for a call that matches."""
        if not _matches(self, call):
            return None
        what = self.reason or f"{call.name} is not allowed here"
        return PolicyDenied(what, hint=self.hint)


@attrs.frozen
class Allow:
    """Allows the operations that match, whatever the rules after it say.

    Attributes:
        operation: pattern of the operation's name: ``*`` and ``?`` as in a shell.
        instance: pattern of the instance's name; ``None`` for all operations, also those about no instance.
        driver: pattern of the driver's name.
    """

    operation: str = "*"
    instance: str | None = attrs.field(default=None, kw_only=True)
    driver: str = attrs.field(default="*", kw_only=True)

    def __call__(self, call: OperationCall) -> bool | None:
        """True for a call that matches."""
        return True if _matches(self, call) else None


@attrs.frozen
class MaxRunning:
    """Refuses to start more than some instances of one driver.

    The driver is asked which are alive, so instances that others have started count. Starts through one `Policy`
    are counted before they are alive; several processes that start at the same moment may go beyond the limit.

    Attributes:
        limit: how many may be alive.
        driver: pattern of the driver's name.
        hint: what the caller can do about it, for the error.
    """

    limit: int
    driver: str = attrs.field(default="*", kw_only=True)
    hint: str | None = attrs.field(default="stop an instance first", kw_only=True)


Rule = Callable[[OperationCall], PolicyDenied | bool | None] | MaxRunning
"""Takes a call and returns the error to refuse it with, ``True`` to allow it, or ``None`` to leave it to the rules
after it."""


class Policy:
    """Refuses operations by rules, before anything is touched. The first rule that decides is the last one asked.

    What no rule decides is allowed; with ``Deny()`` as the last rule it is refused.

    Args:
        rules: `Deny`, `Allow`, `MaxRunning`, or callables.
    """

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._rules: Sequence[Rule] = tuple(rules)
        for rule in self._rules:
            if not callable(rule) and not isinstance(rule, MaxRunning):
                raise TypeError(f"a rule of a policy has to be callable, not {type(rule).__name__}")
        self._lock = threading.Lock()
        self._starting: dict[str, list[object]] = {}

    @hookimpl(wrapper=True)
    def hv_operation(self, call: OperationCall) -> Generator[None, object, object]:
        """Refuse one operation, or let it pass."""
        limits = self._decide(call)
        if not limits:
            return (yield)
        with self._counted(call, limits):
            return (yield)

    def _decide(self, call: OperationCall) -> list[MaxRunning]:
        """Raise the refusal; else the limits that hold for the call."""
        limits: list[MaxRunning] = []
        for rule in self._rules:
            if isinstance(rule, MaxRunning):
                if call.name in STARTS and fnmatch.fnmatchcase(call.driver, rule.driver):
                    limits.append(rule)
                continue
            verdict = rule(call)
            if verdict is None:
                continue
            if verdict is True:
                break
            if isinstance(verdict, PolicyDenied):
                raise verdict
            raise TypeError(f"a rule returned {verdict!r}: neither an error, nor True, nor None")
        return limits

    @contextlib.contextmanager
    def _counted(self, call: OperationCall, limits: Sequence[MaxRunning]) -> Iterator[None]:
        # One that is restored has no name yet, and is somebody new.
        me = call.instance if call.instance is not None else call
        with self._lock:
            starting = self._starting.setdefault(call.driver, [])
            listing = call.view.list_instances(call.deadline)
            # By identity or name: calls cannot be hashed, their arguments may be anything.
            names = {row.name for row in listing.instances if row.alive}
            names |= {other for other in starting if isinstance(other, str)}
            others = len(names - {me} if isinstance(me, str) else names)
            others += sum(not isinstance(other, str) for other in starting)
            for rule in limits:
                if others >= rule.limit:
                    raise PolicyDenied(
                        f"{others} instances are alive or being started, and {rule.limit} may be", hint=rule.hint
                    )
            starting.append(me)
        try:
            yield
        finally:
            with self._lock:
                # By identity: comparing calls would compare their arguments.
                index = next(i for i, other in enumerate(starting) if other is me)
                del starting[index]


def _matches(rule: Deny | Allow, call: OperationCall) -> bool:
    if rule.operation not in ("*", call.name) and not fnmatch.fnmatchcase(call.name, rule.operation):
        return False
    if rule.driver not in ("*", call.driver) and not fnmatch.fnmatchcase(call.driver, rule.driver):
        return False
    if rule.instance is None:
        return True
    return call.instance is not None and fnmatch.fnmatchcase(call.instance, rule.instance)
