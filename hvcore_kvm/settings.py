"""Settings of the KVM driver: what a host application decides about it, not about one instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from hvcore import FindingSet, LoadError, Seconds, checks, param, structure


@attrs.frozen(kw_only=True)
class KvmSettings:
    """Given to `hvcore.load_driver` as ``settings``."""

    qemu: str = param(
        default="qemu-system-x86_64",
        checks=(checks.no_control_characters,),
        summary="QEMU program: an absolute path, or a name that is looked up in the system's program directories.",
    )
    start_timeout: Seconds = param(
        default=Seconds(20.0), unit="seconds", summary="How long QEMU may take until its monitor answers."
    )
    query_timeout: Seconds = param(
        default=Seconds(2.0), unit="seconds", summary="How long a query waits for one instance's answer."
    )
    save_compression: str = param(
        default="none",
        choices=("none", "zlib"),
        summary="How the files of saved instances are compressed; zlib takes longer, in which the guest stands still.",
    )
    allow_powercycle: bool = param(
        default=False, summary="Let powercycle_node restart this host at once, without stopping anything first."
    )


def read_settings(values: Mapping[str, Any]) -> KvmSettings:
    """Check the settings of a host application.

    Raises:
        LoadError: everything that is wrong with them.
    """
    settings, findings = structure(KvmSettings, dict(values))
    if findings:
        raise LoadError("the settings of driver kvm have errors", FindingSet(findings))
    return settings
