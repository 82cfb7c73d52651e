"""Holding family plugins to what they promise: whatever else they raise or return becomes an error that names them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import attrs

from hvcore import Console, DriverFault, Finding, HostError, HypervisorError, Step
from hvcore_kvm import families

_DISTRIBUTION = re.compile(r"\(.*\)$", re.DOTALL)
_DEFECT = "this is a defect of the plugin; report it with the traceback, or use another one"


def plugin_label(title: str, name: str, origin: str) -> str:
    """What a plugin is called in messages: ``NIC mode segment (fabric-hv 1.0)``.

    Args:
        title: what a plugin of the family is called.
        name: name of the record.
        origin: what the module is registered as, which ends with its distribution.
    """
    found = _DISTRIBUTION.search(origin)
    return f"{title} {name} {found[0] if found else f'({origin})'}"


class GuardedBackend:
    """The object in a family record, called so that no foreign exception and no wrong result comes out of it.

    Everything else of the object, such as ``tap``, is what it is.

    Args:
        backend: the object.
        label: what the plugin is called.
    """

    def __init__(self, backend: Any, label: str) -> None:
        self._backend = backend
        self._label = label

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._backend, name)
        guard = _GUARDS.get(name)
        return value if guard is None else functools.partial(guard, value, self._label)


def guarded_rule(rule: Callable[[Any], Any], label: str) -> Callable[[Any], Any]:
    """A rule of a plugin's parameters, called in the same way."""
    return functools.partial(_findings, "a rule", rule, label)


def _call(function: Callable[..., Any], label: str, what: str, *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except HypervisorError:
        raise
    except Exception as error:
        raise DriverFault(f"{label} raised {type(error).__name__} in {what}: {error}", hint=_DEFECT) from error


def _findings(what: str, function: Callable[..., Any], label: str, *arguments: Any) -> list[Finding]:
    # The plugin's own generator may fail while it is read.
    found = _call(lambda: list(function(*arguments)), label, what)
    for finding in found:
        if not isinstance(finding, Finding):
            raise _wrong(label, what, finding, "Findings")
    return list(found)


def _wrong(label: str, what: str, result: object, expected: str) -> DriverFault:
    return DriverFault(f"{label} returned {type(result).__name__} from {what}; expected {expected}", hint=_DEFECT)


def _plan(function: Callable[..., Any], label: str, *arguments: Any) -> Any:
    context = arguments[0]
    if hasattr(context, "fd"):
        arguments = (attrs.evolve(context, fd=lambda request: context.fd(_guarded_request(request, label))),)
    plan = _call(function, label, "plan", *arguments)
    if isinstance(context, families.NicContext):
        if not isinstance(plan, families.NicPlan):
            raise _wrong(label, "plan", plan, "a NicPlan")
        if plan.netdev.get("id") != context.netdev_id:
            ident = plan.netdev.get("id")
            raise DriverFault(
                f"{label} planned a netdev {ident!r}; its id has to be {context.netdev_id!r}", hint=_DEFECT
            )
        change = None if plan.change is None else _guarded_steps(plan.change, label)
        up, down = _guarded_steps(plan.up, label), _guarded_steps(plan.down, label)
        return attrs.evolve(plan, up=up, down=down, change=change)
    if isinstance(context, families.ConsoleContext):
        if not isinstance(plan, families.ConsolePlan):
            raise _wrong(label, "plan", plan, "a ConsolePlan")
        return plan
    if not isinstance(plan, families.SecurityPlan):
        raise _wrong(label, "plan", plan, "a SecurityPlan")
    return attrs.evolve(plan, steps=_guarded_steps(plan.steps, label))


def _guarded_request(request: Any, label: str) -> Any:
    return attrs.evolve(request, open=functools.partial(_act, request.open, label, f"opening {request.name}"))


def _guarded_steps(steps: tuple[Step, ...], label: str) -> tuple[Step, ...]:
    return tuple(_guarded_step(step, label) for step in steps)


def _guarded_step(step: Step, label: str) -> Step:
    do = functools.partial(_act, step.do, label, f"step {step.name!r}")
    if step.undo is None:
        return attrs.evolve(step, do=do)
    return attrs.evolve(step, do=do, undo=functools.partial(_act, step.undo, label, f"undoing {step.name!r}"))


def _act(function: Callable[[], Any], label: str, what: str) -> Any:
    """Do something on the host; what the kernel says is no defect of the plugin."""
    try:
        return _call(function, label, what)
    except DriverFault as fault:
        error = fault.__cause__
        if not isinstance(error, OSError):
            raise
        where = f": {error.filename}" if error.filename is not None else ""
        said = f"{error.strerror or error}{where}"
        raise HostError(f"{label}: {what}: {said}", code="plugin-step-failed") from error


def _endpoint(function: Callable[..., Any], label: str, *arguments: Any) -> Console:
    console = _call(function, label, "endpoint", *arguments)
    if not isinstance(console, Console):
        raise _wrong(label, "endpoint", console, "a Console")
    return console


_GUARDS: dict[str, Callable[..., Any]] = {
    "check": functools.partial(_findings, "check"),
    "check_host": functools.partial(_findings, "check_host"),
    "assess": functools.partial(_findings, "assess"),
    "plan": _plan,
    "endpoint": _endpoint,
    "disconnect": lambda function, label, *arguments: _call(function, label, "disconnect", *arguments),
}
