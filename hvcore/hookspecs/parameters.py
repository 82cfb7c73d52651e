"""What can be set, and what is wrong with what was set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from hvcore.deadline import Deadline
    from hvcore.findings import FindingSet
    from hvcore.model.instance import Instance
    from hvcore.params.declare import ParameterTable


@hookspec(firstresult=True)
def hv_parameters() -> ParameterTable:
    """List every parameter of the driver and of its family plugins.

    Pure: the same answer on every host.

    Returns:
        The sections, in the order in which they should be documented.

    Errors: none.

    Capability: none (every driver). Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_check_parameter_syntax(instance: Instance) -> FindingSet:
    """Find everything wrong with a definition that can be known without looking at a host.

    Pure: no file, process or socket is touched, so it may run anywhere. The facade has already checked the fields
    of the model; the driver checks ``params`` everywhere and what belongs together.

    Args:
        instance: the definition; fields that were wrong hold an empty value and are reported already.

    Returns:
        All findings, paths in the words of the instance file.

    Errors: none; problems are findings.

    Capability: none (every driver). Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_validate_parameters(instance: Instance, deadline: Deadline) -> FindingSet:
    """Find everything on this host that stands against running a definition.

    Reads, and changes nothing: files, devices, what the hypervisor binary can do. Called with a definition whose
    syntax has no errors.

    Args:
        instance: the definition.
        deadline: by when to be done.

    Returns:
        All findings.

    Errors: `HostError` when the host itself cannot be looked at.

    Capability: none (every driver). Since: 0.1.
    """


@hookspec(firstresult=True)
def hv_assess_parameters(instance: Instance, deadline: Deadline) -> FindingSet:
    """Say what is legal but unwise about a definition.

    Args:
        instance: the definition, its syntax without errors.
        deadline: by when to be done.

    Returns:
        Findings of severity advice or warning only.

    Errors: `HostError` when the host itself cannot be looked at.

    Capability: none (every driver). Since: 0.1.
    """
