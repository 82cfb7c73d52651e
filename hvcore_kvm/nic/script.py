"""NIC mode ``script``: a tap that a script of the administrator's connects.

The script is called with the tap's name, and with everything there is to know in its environment: ``ACTION`` is ``up``
once the tap is there, and ``down`` once QEMU and the tap are gone. ``down`` may be called without an ``up`` before it.

For a guest that arrives from another host a script in mode ``ext`` is called ``up`` twice: with ``MIGRATION_PHASE=pre``
when the tap is there, and with ``post`` once the guest runs here. In mode ``routed`` it is called once the guest runs
here. What fails then is logged: the guest runs already, and would not come back for it.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
from collections.abc import Callable, Iterator

import attrs

from hvcore import Finding, HostError, Instance, Nic, Seconds, Step, checks, param
from hvcore_kvm import (
    NetworkInterface,
    NicContext,
    NicMode,
    NicPlan,
    TapParameters,
    check_tap,
    hookimpl,
    is_vlan,
    plan_tap,
    run_command,
)

_LOG = logging.getLogger("hvcore_kvm")

_LED_LATE = ("ext", "routed")
"""Modes in which the script may lead traffic to the guest, which must not happen while it runs on another host."""

_PHASES = ({"MIGRATION_PHASE": "pre"}, {"MIGRATION_PHASE": "post"})

_OTHERS = 0o022
_MODES = ("ext", "bridged", "routed", "openvswitch")


@attrs.frozen(kw_only=True)
class ScriptNetwork:
    """What the script is told of the network the NIC is in."""

    name: str = param(checks=(checks.no_control_characters,), summary="NETWORK_NAME.")
    uuid: str = param(checks=(checks.no_control_characters,), summary="NETWORK_UUID.")
    tags: tuple[str, ...] = param(
        default=(), item_checks=(checks.no_control_characters,), summary="NETWORK_TAGS, joined by blanks."
    )
    subnet: str | None = param(default=None, checks=(checks.no_control_characters,), summary="NETWORK_SUBNET.")
    gateway: str | None = param(default=None, checks=(checks.ip_address,), summary="NETWORK_GATEWAY.")
    subnet6: str | None = param(default=None, checks=(checks.no_control_characters,), summary="NETWORK_SUBNET6.")
    gateway6: str | None = param(default=None, checks=(checks.ip_address,), summary="NETWORK_GATEWAY6.")
    mac_prefix: str | None = param(default=None, checks=(checks.no_control_characters,), summary="NETWORK_MAC_PREFIX.")


@attrs.frozen(kw_only=True)
class ScriptParameters(TapParameters):
    """Parameters of NIC mode ``script``."""

    script: str = param(
        checks=(checks.absolute_path,),
        summary="The script; it and its directories belong to root, and nobody else may write to them.",
    )
    script_timeout: Seconds = param(
        default=10.0, checks=(checks.between(1, 600),), summary="How long it may take; then it is killed."
    )
    script_mode: str = param(default="ext", choices=_MODES, summary="What the script is told in MODE.")
    vlan: str | None = param(
        default=None, checks=(is_vlan,), aliases=("vlan",), summary="What the script is told in VLAN."
    )
    network: ScriptNetwork | None = param(default=None, summary="What the script is told of the network the NIC is in.")


class ScriptedNetwork:
    """Plans a tap that a script connects."""

    tap = True

    def check(self, nic: Nic, parameters: ScriptParameters) -> Iterator[Finding]:
        """What the script makes of link and address is its own."""
        if parameters.script_mode == "bridged" and nic.link is None:
            message = "a script in mode bridged needs the bridge to connect to"
            yield Finding(code="missing-parameter", path="link", message=message, hint='for example link = "br0"')
        if parameters.script_mode == "routed" and nic.ip is None:
            message = "a script in mode routed needs the address that it leads to the guest"
            yield Finding(code="missing-parameter", path="ip", message=message)

    def check_host(self, nic: Nic, parameters: ScriptParameters) -> Iterator[Finding]:
        """The script is there and in nobody's hands but root's."""
        problem = script_problem(parameters.script)
        if problem is not None:
            hint = "a script of root's that runs as root must be root's alone: chown root, chmod go-w, chmod +x"
            yield Finding(code="unsafe-script", path="params.script", message=problem, hint=hint)
        yield from check_tap(nic)

    def plan(self, context: NicContext) -> NicPlan:
        """A tap, and the script once it is there and once it is gone."""
        parameters: ScriptParameters = context.parameters
        environment = script_environment(context.instance, context.nic, parameters)
        call = functools.partial(_call, parameters, environment)
        title, take_down = f"tap for {parameters.script}", functools.partial(call, "down")
        if not context.arriving or parameters.script_mode not in _LED_LATE:
            return plan_tap(context, title, functools.partial(call, "up"), take_down=take_down)
        up: Callable[[NetworkInterface], None]
        if parameters.script_mode == "routed":
            up, lead = NetworkInterface.bring_up, functools.partial(_try, parameters, environment)
        else:
            up, lead = (functools.partial(_try, parameters, {**environment, **phase}) for phase in _PHASES)
        plan = plan_tap(context, title, up, take_down=take_down)
        late = functools.partial(lead, NetworkInterface(plan.interface))
        return attrs.evolve(plan, lead=(Step(name=f"{parameters.script} for {plan.interface}", do=late),))


def script_environment(instance: Instance, nic: Nic, parameters: ScriptParameters) -> dict[str, str]:
    """What a script is told, but for the name of the tap and the action."""
    index = next((index for index, other in enumerate(instance.nics) if other.uuid == nic.uuid), 0)
    known: dict[str, str | None] = {
        "INSTANCE": instance.name,
        "MAC": nic.mac,
        "MODE": parameters.script_mode,
        "INTERFACE_INDEX": str(index),
        "INTERFACE_UUID": nic.uuid,
        "INTERFACE_NAME": nic.name,
        "TAGS": " ".join(instance.tags),
        "IP": nic.ip,
        "LINK": nic.link or None,
        "VLAN": parameters.vlan,
        "BRIDGE": (nic.link or None) if parameters.script_mode == "bridged" else None,
    }
    network = parameters.network
    if network is not None:
        known |= {
            "NETWORK_NAME": network.name,
            "NETWORK_UUID": network.uuid,
            "NETWORK_TAGS": " ".join(network.tags),
            "NETWORK_SUBNET": network.subnet,
            "NETWORK_GATEWAY": network.gateway,
            "NETWORK_SUBNET6": network.subnet6,
            "NETWORK_GATEWAY6": network.gateway6,
            "NETWORK_MAC_PREFIX": network.mac_prefix,
        }
    return {name: value for name, value in known.items() if value is not None}


def script_problem(path: str) -> str | None:
    """Why root must not run a file; ``None`` if nothing speaks against it."""
    try:
        real = os.path.realpath(path, strict=True)
        found = os.stat(real)
        if not stat.S_ISREG(found.st_mode):
            return f"{path} is no regular file"
        if not found.st_mode & 0o111:
            return f"{path} is not executable"
        # Whoever may write to a directory can put another file in the place of the script.
        for place in (path, real):
            problem = _foreign(place)
            while problem is None and place != "/":
                place = os.path.dirname(place)
                problem = _foreign(place)
            if problem is not None:
                return problem
    except OSError as error:
        return f"{path}: {error.strerror}"
    return None


def _foreign(path: str) -> str | None:
    found = os.stat(path)
    # A symbolic link as well as what it leads to.
    for owner in (os.lstat(path).st_uid, found.st_uid):
        if owner != 0:
            return f"{path} belongs to uid {owner}, not to root"
    # In a directory such as /tmp nobody can move what is another's.
    if found.st_mode & _OTHERS and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        return f"others than root may write to {path}"
    return None


def _call(parameters: ScriptParameters, environment: dict[str, str], action: str, tap: NetworkInterface) -> None:
    # Looked at again: the check may have been long ago.
    problem = script_problem(parameters.script)
    if problem is not None:
        raise HostError(problem, code="unsafe-script")
    run_command(
        (parameters.script, tap.name),
        timeout=parameters.script_timeout,
        environment={**environment, "INTERFACE": tap.name, "ACTION": action},
    )


def _try(parameters: ScriptParameters, environment: dict[str, str], tap: NetworkInterface) -> None:
    try:
        _call(parameters, environment, "up", tap)
    except HostError as error:
        _LOG.warning("%s for %s, which has come from another host: %s", parameters.script, tap.name, error)


@hookimpl
def kvm_nic_modes() -> Iterator[NicMode]:
    """The mode."""
    yield NicMode(
        name="script",
        summary="A tap that a script of the administrator's connects.",
        backend=ScriptedNetwork(),
        parameters=ScriptParameters,
    )
