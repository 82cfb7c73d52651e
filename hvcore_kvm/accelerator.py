"""What runs the guest's code on this host: asked of the kernel, not assumed."""

from __future__ import annotations

import enum
import os

import attrs

from hvcore import Finding
from hvcore_kvm.kvm_device import KvmLevel, probe_kvm


class Accelerator(enum.StrEnum):
    """What runs the guest's code."""

    KVM = "kvm"
    TCG = "tcg"


@attrs.frozen(kw_only=True)
class Choice:
    """The accelerator that was chosen, and why, for people."""

    accelerator: Accelerator
    reason: str


def choose(requested: str, kvm_built_in: bool, arch: str) -> tuple[Choice, list[Finding]]:
    """Resolve ``auto``, and find out whether what was asked for can be had.

    Args:
        requested: ``auto``, ``kvm`` or ``tcg``.
        kvm_built_in: the QEMU program was built with KVM.
        arch: architecture of the guest, in QEMU's words.

    Returns:
        The choice, and findings against it.
    """
    if requested == "tcg":
        return Choice(accelerator=Accelerator.TCG, reason="asked for"), []
    if arch != os.uname().machine:
        why = f"KVM runs guests of this host's architecture, {os.uname().machine}"
        hint = 'set accel = "auto" or "tcg"'
        findings = [Finding(code="kvm-unusable", path="params.accel", message=why, hint=hint)]
        return Choice(accelerator=Accelerator.TCG, reason=why), findings if requested == "kvm" else []
    verdict = probe_kvm()
    usable = kvm_built_in and verdict.level in (KvmLevel.FULL, KvmLevel.LIMITED)
    why = verdict.reason if kvm_built_in else "this QEMU was built without KVM"
    if requested == "kvm":
        findings = []
        if not usable:
            findings.append(
                Finding(
                    code="kvm-unusable",
                    path="params.accel",
                    message=f"KVM cannot be used: {why}",
                    hint=verdict.hint or 'set accel = "auto" or "tcg"',
                )
            )
        return Choice(accelerator=Accelerator.KVM, reason="asked for"), findings
    if usable and verdict.level is KvmLevel.FULL:
        return Choice(accelerator=Accelerator.KVM, reason=why), []
    return Choice(accelerator=Accelerator.TCG, reason=f"KVM is not used: {why}"), []
