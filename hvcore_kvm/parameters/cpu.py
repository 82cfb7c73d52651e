"""Parameters of the guest's processors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from hvcore import Finding, checks, param
from hvcore_kvm.parameters.syntax import cpu_mask, qemu_word, single_cpu_mask

HYPERV_FEATURES = (
    "relaxed",
    "vapic",
    "spinlocks",
    "vpindex",
    "runtime",
    "crash",
    "time",
    "synic",
    "stimer",
    "stimer-direct",
    "reset",
    "frequencies",
    "reenlightenment",
    "tlbflush",
    "ipi",
    "avic",
    "evmcs",
)
"""Hyper-V enlightenments, as QEMU's ``hv-*`` CPU properties name them (QEMU's docs/system/i386/hyperv)."""


@attrs.frozen(kw_only=True)
class Topology:
    """How the virtual CPUs are arranged; the product is the largest number of them."""

    sockets: int | None = param(
        default=None, checks=(checks.between(1, 4096),), aliases=("cpu_sockets",), summary="Sockets."
    )
    dies: int | None = param(default=None, checks=(checks.between(1, 4096),), summary="Dies a socket (x86).")
    clusters: int | None = param(default=None, checks=(checks.between(1, 4096),), summary="Clusters a die (aarch64).")
    cores: int | None = param(
        default=None, checks=(checks.between(1, 4096),), aliases=("cpu_cores",), summary="Cores a die or cluster."
    )
    threads: int | None = param(
        default=None, checks=(checks.between(1, 4096),), aliases=("cpu_threads",), summary="Threads a core."
    )


@attrs.frozen(kw_only=True)
class CpuParameters:
    """The guest's processors."""

    cpu_model: str | None = param(
        default=None,
        checks=(qemu_word,),
        aliases=("cpu_type",),
        summary="CPU model; host with KVM and max with TCG when not given. x86-64-v1 to x86-64-v4 are the levels of "
        "the x86-64 psABI, on every QEMU.",
    )
    cpu_features: Mapping[str, bool] = param(
        factory=dict, summary="CPU features switched on or off, added to the model."
    )
    cpu_enforce: bool = param(
        default=True, summary="Refuse to start when the host or accelerator lacks a feature of the named model."
    )
    hyperv: tuple[str, ...] = param(
        default=(),
        item_checks=(
            lambda value: (
                None
                if value in (*HYPERV_FEATURES, "all")
                else f"{value[:40]!r} is none of {', '.join(HYPERV_FEATURES)} and all"
            ),
        ),
        summary="Hyper-V enlightenments, for Windows guests: names, or all for those that every host has (KVM).",
    )
    nested: bool | None = param(
        default=None,
        summary="Let the guest run virtual machines of its own (vmx or svm); the model decides if not given.",
    )
    vcpus_max: int | None = param(
        default=None,
        checks=(checks.between(1, 4096),),
        summary="Most virtual CPUs the guest can have without a restart; as many as it starts with when not given.",
    )
    topology: Topology | None = param(
        default=None, summary="Sockets, dies, clusters, cores and threads; QEMU decides when not given."
    )
    cpu_pin: str | None = param(
        default=None,
        checks=(cpu_mask,),
        changes="live",
        aliases=("cpu_mask",),
        summary="Host CPUs of the whole instance (0-2,5), or of each virtual CPU (1:3:all).",
    )
    emulator_pin: str | None = param(
        default=None,
        checks=(single_cpu_mask,),
        changes="live",
        summary="Host CPUs of QEMU's own threads, those that run no virtual CPU and no disk.",
    )
    iothread_pin: str | None = param(
        default=None,
        checks=(cpu_mask,),
        changes="live",
        summary="Host CPUs of all I/O threads (2,3), or of each (2:3).",
    )


def cpu_rules(cpu: CpuParameters) -> Iterator[Finding]:
    """What is wrong with several of them together."""
    for name in cpu.cpu_features:
        problem = qemu_word(name)
        if problem:
            yield Finding(code="invalid-value", path="cpu_features", message=problem)
    if cpu.topology is not None and cpu.topology.dies and cpu.topology.clusters:
        message = "dies are of x86, clusters of aarch64; no machine has both"
        yield Finding(code="contradiction", path="topology", message=message)
