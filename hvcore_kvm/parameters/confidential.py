"""Parameters of guests whose memory the host cannot read."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from hvcore import Finding, checks, param

AMD = ("sev", "sev-es", "sev-snp")
"""What AMD's processors offer."""

FROZEN = ("sev-es", "sev-snp", "tdx")
"""Where the host cannot read or change the state of the guest's processors either."""

WITHOUT_FLASH = ("sev-snp", "tdx")
"""Whose firmware is loaded into memory, and keeps no variables."""

_POLICY_ES = 1 << 2  # Secure Encrypted Virtualization API, section 3
_POLICY_SNP_RESERVED = 1 << 17  # SEV Secure Nested Paging Firmware ABI Specification, section 4.3


@attrs.frozen(kw_only=True)
class ConfidentialParameters:
    """A guest whose memory the host cannot read: its processor encrypts it."""

    confidential: str = param(
        default="none",
        choices=("none", *AMD, "tdx"),
        summary="Who keeps the host out: AMD's SEV, SEV-ES or SEV-SNP (QEMU 9.1 and newer), or Intel's TDX (QEMU 10.1 "
        "and newer). Needs q35, KVM and UEFI.",
    )
    confidential_policy: int | None = param(
        default=None,
        checks=(checks.between(0, 2**63 - 1),),
        summary="What the host may do with the guest, as a number of AMD's policy bits; QEMU's own choice, for sev-es "
        "with the bit of SEV-ES, when not given.",
    )
    confidential_kernel_hashes: bool = param(
        default=False,
        summary="A kernel that is booted directly is measured with its initrd and command line (sev, sev-es, sev-snp).",
    )


def confidential_rules(given: ConfidentialParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    kind, policy = given.confidential, given.confidential_policy
    for name, unset in (("confidential_policy", None), ("confidential_kernel_hashes", False)):
        if getattr(given, name) != unset and kind not in AMD:
            message = f"goes with confidential {', '.join(AMD)}, and it is {kind}"
            yield Finding(code="contradiction", path=name, message=message)
            return
    if policy is None:
        return
    if kind != "sev-snp" and policy >= 2**32:
        yield Finding(code="invalid-value", path="confidential_policy", message=f"{policy:#x} has more than 32 bits")
    if kind == "sev" and policy & _POLICY_ES:
        message = f"{policy:#x} asks for SEV-ES"
        yield Finding(
            code="contradiction", path="confidential_policy", message=message, hint='use confidential = "sev-es"'
        )
    if kind == "sev-es" and not policy & _POLICY_ES:
        message = f"{policy:#x} lacks the bit of SEV-ES, {_POLICY_ES:#x}"
        yield Finding(code="contradiction", path="confidential_policy", message=message)
    if kind == "sev-snp" and not policy & _POLICY_SNP_RESERVED:
        message = f"{policy:#x} lacks {_POLICY_SNP_RESERVED:#x}, which is always set"
        yield Finding(code="contradiction", path="confidential_policy", message=message)


def policy_of(given: ConfidentialParameters) -> int | None:
    """The policy QEMU is told; ``None`` for its own choice."""
    if given.confidential_policy is None and given.confidential == "sev-es":
        return 1 | _POLICY_ES
    return given.confidential_policy
