"""Auditing a plugin before it is used: every fault at once, each naming plugin, hook and signature."""

from __future__ import annotations

import difflib
import functools
import inspect
import types
from collections.abc import Iterable, Sequence
from typing import Any

from hvcore.capabilities import DriverDescription
from hvcore.findings import Finding
from hvcore.hookspecs.markers import HOOK_API, PROJECT
from hvcore.hookspecs.table import OPERATIONS

_SPEC = f"{PROJECT}_spec"
_IMPL = f"{PROJECT}_impl"


def specified_hooks(modules: Sequence[types.ModuleType]) -> dict[str, tuple[str, ...]]:
    """Every hook of some modules of specifications, with the names of its arguments."""
    return {name: arguments for module in modules for name, arguments in _specified_in(module).items()}


@functools.cache
def _specified_in(module: types.ModuleType) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(inspect.signature(function).parameters)
        for name, function in vars(module).items()
        if getattr(function, _SPEC, None) is not None
    }


def audit_hooks(plugin: object, label: str, modules: Sequence[types.ModuleType]) -> list[Finding]:
    """Find every fault in the hook implementations of one plugin.

    Args:
        plugin: a module or an object.
        label: what to call it: name and distribution.
        modules: the specifications it may implement.

    Returns:
        One finding per fault: unknown hook, wrong arguments, argument defaults, coroutine or generator.
    """
    specified = specified_hooks(modules)
    findings: list[Finding] = []
    for name, function, options in _implementations(plugin):
        hook = options.get("specname") or name
        if hook not in specified:
            near = difflib.get_close_matches(hook, specified, n=1)
            findings.append(
                _fault("unknown-hook", label, hook, "is no hook", f"did you mean {near[0]}?" if near else None)
            )
            continue
        findings.extend(_signature_faults(label, hook, function, specified[hook]))
        wraps = options.get("wrapper") or options.get("hookwrapper")
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            findings.append(_fault("coroutine-hook", label, hook, "is a coroutine; hooks are synchronous"))
        elif options.get("hookwrapper"):
            findings.append(_fault("old-wrapper", label, hook, "is an old-style hookwrapper; use wrapper=True"))
        elif inspect.isgeneratorfunction(function) and not wraps and hook.startswith("hv_"):
            findings.append(_fault("generator-hook", label, hook, "is a generator; it has to return a record"))
    return findings


def audit_driver(plugin: object, label: str, modules: Sequence[types.ModuleType]) -> list[Finding]:
    """Find every fault of a driver: its hooks, the ones it lacks, its hook API, its claims."""
    findings = audit_hooks(plugin, label, modules)
    present = {options.get("specname") or name for name, _, options in _implementations(plugin)}
    if "hv_operation" in present:
        findings.append(_fault("driver-wraps", label, "hv_operation", "is for extensions, not for drivers"))
    for operation in OPERATIONS:
        if operation.capability is None and operation.hook not in present:
            findings.append(_fault("missing-hook", label, operation.hook, "is required of every driver"))
    if findings:
        return findings
    description = plugin.hv_describe_driver()  # type: ignore[attr-defined]
    if not isinstance(description, DriverDescription):
        kind = type(description).__name__
        return [_fault("wrong-result", label, "hv_describe_driver", f"returned {kind}, not a DriverDescription")]
    if description.hook_api != HOOK_API:
        findings.append(
            Finding(
                code="hook-api",
                path=label,
                message=f"was written for hook API {description.hook_api}; this hvcore has {HOOK_API}",
                hint="install a matching version of the driver",
            )
        )
    return findings + _claim_faults(label, description, present) + _widened_claims(plugin, label, description)


def audit_extension(plugin: object, label: str, modules: Sequence[types.ModuleType]) -> list[Finding]:
    """Find every fault of an extension: it may only wrap `hv_operation`."""
    findings = audit_hooks(plugin, label, modules)
    wraps = False
    for name, _, options in _implementations(plugin):
        hook = options.get("specname") or name
        if hook != "hv_operation" and hook.startswith("hv_"):
            findings.append(_fault("extension-hook", label, hook, "belongs to a driver; extensions wrap hv_operation"))
        elif hook == "hv_operation":
            wraps = True
            if not options.get("wrapper"):
                findings.append(_fault("not-a-wrapper", label, hook, "must be marked hookimpl(wrapper=True)"))
    if not wraps and not findings:
        findings.append(_fault("missing-hook", label, "hv_operation", "is what an extension wraps; it has none"))
    return findings


def _implementations(plugin: object) -> Iterable[tuple[str, Any, dict[str, Any]]]:
    for name in dir(plugin):
        # Static lookup first: properties of a plugin must not run because somebody looks at it.
        static = inspect.getattr_static(plugin, name, None)
        if isinstance(static, property) or not callable(getattr(static, "__func__", static)):
            continue
        options = getattr(getattr(static, "__func__", static), _IMPL, None)
        if isinstance(options, dict):
            yield name, getattr(plugin, name), options


def _signature_faults(label: str, hook: str, function: Any, wanted: tuple[str, ...]) -> Iterable[Finding]:
    parameters = inspect.signature(function).parameters
    shown = f"{hook}{inspect.signature(function)}"
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield _fault("wrong-argument", label, shown, f"takes *{name}; name the arguments")
        elif name not in wanted:
            near = difflib.get_close_matches(name, wanted, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it may take {', '.join(wanted) or 'none'}"
            yield _fault("wrong-argument", label, shown, f"takes the argument {name}, which the hook has not", hint)
        elif parameter.default is not parameter.empty:
            yield _fault("argument-default", label, shown, f"gives {name} a default; pluggy would not fill it in")


def _claim_faults(label: str, description: DriverDescription, present: set[str]) -> list[Finding]:
    findings = []
    seen = set()
    for claim in description.claims:
        if claim.capability in seen:
            findings.append(_fault("repeated-claim", label, claim.capability.value, "is claimed twice"))
        seen.add(claim.capability)
    for operation in OPERATIONS:
        if operation.capability is None:
            continue
        offered = description.claim(operation.capability).offered
        if offered and operation.hook not in present:
            what = f"is missing, but {operation.capability.value} is claimed"
            findings.append(_fault("claim-without-hook", label, operation.hook, what))
    return findings


def _widened_claims(plugin: object, label: str, description: DriverDescription) -> list[Finding]:
    """A probe of the host may only take away from what the driver claims in general."""
    general = getattr(plugin, "claims", None)
    if general is None:
        return []
    breadth = {claim.capability: claim.level.breadth for claim in general}
    return [
        _fault("widened-claim", label, claim.capability.value, f"is {claim.level.value} here, and less in general")
        for claim in description.claims
        if claim.level.breadth > breadth.get(claim.capability, 0)
    ]


def _fault(code: str, label: str, what: str, message: str, hint: str | None = None) -> Finding:
    return Finding(code=code, path=f"{label}: {what}", message=message, hint=hint)
