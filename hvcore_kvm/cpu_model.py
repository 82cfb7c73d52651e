"""CPU models and features: what QEMU has, and the levels of the x86-64 psABI, which it has not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hvcore_kvm.accelerator import Accelerator
from hvcore_kvm.parameters.cpu import CpuParameters

if TYPE_CHECKING:
    from hvcore_kvm.launch_plan import Decisions

_V2 = ("cx16", "lahf-lm", "popcnt", "pni", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

LEVELS = {"x86-64-v1": (), "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
"""Features of each level of the x86-64 psABI above its baseline, in QEMU's names."""

_BASELINE = "qemu64"
_EVERYWHERE = (
    "relaxed",
    "vapic",
    "spinlocks",
    "vpindex",
    "runtime",
    "time",
    "synic",
    "stimer",
    "reset",
    "frequencies",
    "tlbflush",
    "ipi",
)
_SPINLOCK_RETRIES = "0x1fff"


def cpu_value(decisions: Decisions) -> tuple[str, dict[str, Any]]:
    """The model and the properties of ``-cpu``."""
    cpu = decisions.definition.cpu
    wanted = decisions.cpu_model
    properties: dict[str, Any] = dict.fromkeys(LEVELS.get(wanted, ()), True)
    model = _BASELINE if wanted in LEVELS else wanted
    x86 = decisions.capabilities.arch == "x86_64"
    if x86:
        properties |= {
            f"hv-{name}": _SPINLOCK_RETRIES if name == "spinlocks" else True for name in hyperv_features(cpu)
        }
    if cpu.nested is not None and x86:
        properties |= _nested(cpu.nested, decisions.choice.accelerator)
    properties |= dict(sorted(cpu.cpu_features.items()))
    properties |= dict.fromkeys(decisions.cpu_without, False)
    if x86 and cpu.cpu_enforce and model not in ("host", "max"):
        properties["enforce"] = True
    return model, properties


def hyperv_features(cpu: CpuParameters) -> tuple[str, ...]:
    """The Hyper-V enlightenments asked for, ``all`` spelt out."""
    names = dict.fromkeys(name for given in cpu.hyperv for name in (_EVERYWHERE if given == "all" else (given,)))
    return tuple(names)


def _nested(wanted: bool, accelerator: Accelerator) -> dict[str, bool]:
    if not wanted:
        return {"svm": False, "vmx": False}
    # QEMU emulates AMD's; with KVM it is that of the host's processor.
    return {"vmx" if accelerator is Accelerator.KVM and _is_intel() else "svm": True}


def _is_intel() -> bool:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        return any(line.startswith("vendor_id") and "GenuineIntel" in line for line in file)
