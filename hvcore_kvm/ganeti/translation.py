"""What a translation gives: the instance, how it is to be moved, and what was found on the way."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from hvcore import Finding, FindingSet, Instance, MigrationPolicy, Severity
from hvcore_kvm.ganeti.reading import GanetiParameters


@attrs.frozen(kw_only=True)
class Unplaced:
    """A value of Ganeti's for which an instance has no place, or two spellings of the same.

    Attributes:
        given: the value.
        returned: what the way back makes of the instance instead.
    """

    given: Any
    returned: Any


@attrs.frozen(kw_only=True)
class Translation:
    """An instance of Ganeti's, in the words of this driver.

    Attributes:
        instance: the definition; ``None`` when there are errors.
        findings: errors, what is lost (code ``lossy``) and what is worth knowing, with Ganeti's names as paths.
        migration: how the instance is to be moved.
        migration_port: the port that Ganeti migrates to.
        migration_capabilities: what is switched on in QEMU for a migration.
        filled: the source in one form, with every default filled in.
        unplaced: by path, what the instance does not say; give it to `from_instance` to get exactly ``filled``.
    """

    instance: Instance | None
    findings: FindingSet
    migration: MigrationPolicy
    migration_port: int
    migration_capabilities: tuple[str, ...] = ()
    filled: GanetiParameters
    unplaced: Mapping[str, Unplaced] = MappingProxyType({})


def lossy(path: str, message: str, hint: str | None = None) -> Finding:
    """Something that cannot be said in the words of the other side."""
    return Finding(code="lossy", path=path, message=message, hint=hint, severity=Severity.WARNING)


def note(path: str, message: str, hint: str | None = None) -> Finding:
    """Something worth knowing about how a value was translated."""
    return Finding(code="translated", path=path, message=message, hint=hint, severity=Severity.ADVICE)
