"""From what a host application gives to a `MigrationPolicy`, with every problem at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hvcore.findings import Finding
from hvcore.model.migration_policy import MigrationPolicy, disks_of, policy_rules, tls_of
from hvcore.params.structure import structure


def read_migration_policy(given: MigrationPolicy | Mapping[str, Any]) -> tuple[MigrationPolicy, list[Finding]]:
    """Structure and check a migration policy.

    Args:
        given: a `MigrationPolicy` (whose constructor checks nothing) or a mapping of its fields.

    Returns:
        The policy, and everything wrong with it: with its fields, else with several of them together. With findings it
        must not be used.
    """
    values = _as_mapping(given)
    if isinstance(values, Mapping) and isinstance(values.get("tls"), bool):
        values = {**values, "tls": _as_mapping(tls_of(values["tls"]))}
    if isinstance(values, Mapping) and isinstance(values.get("copy_disks"), str):
        values = {**values, "copy_disks": disks_of(values["copy_disks"])}
    policy, findings = structure(MigrationPolicy, values)
    return policy, findings or list(policy_rules(policy))


def _as_mapping(record: Any) -> Any:
    # Not attrs.asdict: it would copy what is not ours, and fail on what is not what it should be.
    if attrs.has(type(record)) and type(record).__module__ == MigrationPolicy.__module__:
        return {field.name: _as_mapping(getattr(record, field.name)) for field in attrs.fields(type(record))}
    return record
