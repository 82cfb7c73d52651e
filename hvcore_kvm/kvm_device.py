"""What the host's ``/dev/kvm`` can really do: found by running a few instructions in it.

A device node that opens proves little. Some hosts have a *software* KVM (no ``vmx`` or ``svm`` flag): it runs a tiny
firmware, but interprets kernel-mode code and gives up at instructions every operating system uses. CPU flags and
module names would be guesses, so the probe makes a virtual machine of one vcpu and runs such instructions in 64-bit
kernel mode.

Why it cannot loop: the code is straight-line and ends in ``hlt``. It leaves to us with an ``out`` after each step, and
we enter again only after the very step that was due, so a KVM which repeats one is found out. Every exception except
#BP finds no gate and becomes a triple fault, which ends the run. There is no interrupt controller, hence no interrupt,
and ``hlt`` leaves KVM instead of waiting. A signal also leaves KVM (and its Python handler runs); we enter again after
that a bounded number of times.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import functools
import mmap
import os
import platform
import stat
import struct
from collections.abc import Sequence

import attrs

# Linux UAPI, include/uapi/linux/kvm.h. The numbers of KVM_GET_API_VERSION and KVM_CREATE_VM hold for the architectures
# with the generic ioctl encoding (x86, arm64, riscv, s390x, loongarch), the others only for x86.
KVM_API_VERSION = 12
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_RUN = 0xAE80
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_SET_CPUID2 = 0x4008AE90

KVM_EXIT_IO = 2
KVM_EXIT_HLT = 5
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17

# struct kvm_run: exit_reason, and the union that explains it.
_EXIT_REASON = struct.Struct("=8xI")
_EXIT_IO = struct.Struct("=32xBBHIQ")  # direction, size, port, count, offset of the data from the start of kvm_run
_EXIT_SUBERROR = struct.Struct("=32xI")
_EXIT_ENTRY_FAILURE = struct.Struct("=32xQ")

# struct kvm_sregs (arch/x86/include/uapi/asm/kvm.h): sizes and offsets.
_SREGS_SIZE = 0x138
_SEGMENT = struct.Struct("=QIH8B2x")  # base, limit, selector, type, present, dpl, db, s, l, g, avl
_SREGS_CS = 0
_SREGS_DATA = tuple(index * _SEGMENT.size for index in range(1, 6))  # ds, es, fs, gs, ss
_TABLE = struct.Struct("=QH6x")  # base, limit
_SREGS_GDT = 0xC0
_SREGS_IDT = 0xD0
_SREGS_CONTROL = struct.Struct("=QQQQQQ")  # cr0, cr2, cr3, cr4, cr8, efer
_SREGS_CR0 = 0xE0

_REGS = struct.Struct("=18Q")  # rax rbx rcx rdx, rsi rdi rsp rbp, r8 to r15, rip, rflags

_CPUID_ENTRIES = 256  # what KVM takes at most
_CPUID_HEADER = struct.Struct("=II")  # number of entries, padding
_CPUID_ENTRY = struct.Struct("=7I12x")  # leaf, sub-leaf, flags, eax, ebx, ecx, edx
_CPUID_CX16 = 1 << 13  # leaf 1, ecx
_CPUID_XSAVE = 1 << 26  # leaf 1, ecx

# The guest's memory: addresses inside its only slot, which starts at 0 and is mapped to the same virtual addresses.
_MEMORY_SIZE = 2 << 20
_GDT, _IDT = 0x1000, 0x2000
_PML4, _PDPT, _PD = 0x3000, 0x4000, 0x5000
_OPERAND, _XSAVE_AREA, _STACK_END = 0x6000, 0x7000, 0x9000
_CODE, _HANDLER = 0x9000, 0xA000
_TSS = 0x0100_0000  # three pages for KVM on old Intel processors: outside the slot, and fcntl takes a signed int only

_CODE_SELECTOR, _DATA_SELECTOR = 0x08, 0x10
_BREAKPOINT = 3

_CR0 = 0x8001_0033  # PG WP NE ET MP PE
_CR4 = 0x0000_0620  # OSXMMEXCPT OSFXSR PAE
_CR4_OSXSAVE = 0x0004_0000
_EFER = 0x0000_0500  # LMA LME

_MAGIC = 0x5A  # what a step puts out when it worked
_MAGIC_TO_AL = bytes([0xB0, _MAGIC])  # mov al, MAGIC
_COMPARE_AND_SWAP = (
    b"\x31\xc0\x31\xd2\x31\xc9"  # xor eax, eax; xor edx, edx; xor ecx, ecx
    + bytes([0xBB, _MAGIC, 0, 0, 0])  # mov ebx, MAGIC
    + b"\xf0\x48\x0f\xc7\x0f\x8a\x07"  # lock cmpxchg16b [rdi]; mov al, [rdi]
)
_RESTORE_STATE = b"\x31\xc9\x0f\x01\xd0\x48\x0f\xae\x2e" + _MAGIC_TO_AL  # xor ecx, ecx; xgetbv; xrstor64 [rsi]; mov
_INT3, _IRETQ, _HLT = b"\xcc", b"\x48\xcf", b"\xf4"

_INTERRUPTIONS_LIMIT = 1000
_HINT_LOAD = "load kvm_intel or kvm_amd, and switch on virtualisation in the firmware (or in the host, if this is a VM)"
_HINT_LIMITED = 'set accel = "auto" or "tcg" for guests with an operating system'


class KvmLevel(enum.StrEnum):
    """How much of a guest the host's KVM can run."""

    FULL = "full"
    """It can run an operating system."""

    LIMITED = "limited"
    """It works, but cannot run kernels."""

    NONE = "none"
    """It is missing or not accessible."""


@attrs.frozen(kw_only=True)
class KvmVerdict:
    """What the probe found.

    Attributes:
        level: how much of a guest can run.
        reason: why, for people, one clause.
        hint: what to do about it.
    """

    level: KvmLevel
    reason: str
    hint: str | None = None


class _ProbeError(Exception):
    """The device does not do what an operating system needs; the text says what it did."""


def probe_kvm(path: str = "/dev/kvm") -> KvmVerdict:
    """Find out what a KVM device can do, by asking it.

    The verdict is kept for the life of the process, per path and effective user: see ``forget_kvm_verdicts``.

    Args:
        path: the device node.

    Returns:
        The verdict; a device that misbehaves is one too, never an exception.
    """
    return _probe(path, os.geteuid())


def forget_kvm_verdicts() -> None:
    """Make the next probe ask the device again, for instance after a kernel module was loaded."""
    _probe.cache_clear()


@functools.cache
def _probe(path: str, _euid: int) -> KvmVerdict:
    with contextlib.ExitStack() as undo:
        try:
            kvm = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            return _not_opened(path, error)
        undo.callback(os.close, kvm)
        if not stat.S_ISCHR(os.fstat(kvm).st_mode):
            return KvmVerdict(level=KvmLevel.NONE, reason=f"{path} is not a character device", hint=_HINT_LOAD)
        try:
            version = _ioctl(kvm, KVM_GET_API_VERSION)
        except OSError as error:
            return KvmVerdict(level=KvmLevel.NONE, reason=f"{path} is not a KVM device: {error.strerror}")
        if version != KVM_API_VERSION:
            reason = f"{path} speaks version {version} of the KVM interface instead of {KVM_API_VERSION}"
            return KvmVerdict(level=KvmLevel.NONE, reason=reason)
        try:
            vm = _ioctl(kvm, KVM_CREATE_VM)
        except OSError as error:
            # EBUSY: another hypervisor has the processor. Nothing runs here, so this is more than a limitation.
            return KvmVerdict(level=KvmLevel.NONE, reason=f"{path} makes no virtual machine: {error.strerror}")
        undo.callback(os.close, vm)
        machine = platform.machine()
        if machine != "x86_64":
            reason = f"{path} makes virtual machines (not probed further on this architecture, {machine})"
            return KvmVerdict(level=KvmLevel.FULL, reason=reason)
        try:
            _run_kernel_code(kvm, vm)
        except _ProbeError as error:
            reason = f"it cannot run 64-bit kernel code ({error})"
            return KvmVerdict(level=KvmLevel.LIMITED, reason=reason, hint=_HINT_LIMITED)
        except OSError as error:
            reason = f"it cannot set up a 64-bit virtual CPU ({error.strerror})"
            return KvmVerdict(level=KvmLevel.LIMITED, reason=reason, hint=_HINT_LIMITED)
    return KvmVerdict(level=KvmLevel.FULL, reason="hardware virtualisation works")


def _not_opened(path: str, error: OSError) -> KvmVerdict:
    if error.errno == errno.ENOENT:
        return KvmVerdict(level=KvmLevel.NONE, reason=f"{path} is not there", hint=_HINT_LOAD)
    hint = None
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"let this user read and write {path}: on most hosts by joining the group kvm"
    elif error.errno in (errno.ENODEV, errno.ENXIO):
        hint = _HINT_LOAD  # the node is there, the module is not
    return KvmVerdict(level=KvmLevel.NONE, reason=f"{path} cannot be opened by this user: {error.strerror}", hint=hint)


def _run_kernel_code(kvm: int, vm: int) -> None:
    """Give a VM memory and a vcpu, and run the steps in it.

    Raises:
        _ProbeError: a step did not work.
        OSError: KVM refused to set something up.
    """
    with contextlib.ExitStack() as undo:
        cpuid = _read_cpuid(kvm)
        features = _features(cpuid)

        memory = undo.enter_context(mmap.mmap(-1, _MEMORY_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        steps = _write_guest(memory, features)
        _ioctl(vm, KVM_SET_TSS_ADDR, _TSS)
        # The ctypes object lives only inside this expression: a longer life would keep the mapping from being closed.
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        slot = bytearray(struct.pack("=IIQQQ", 0, 0, 0, _MEMORY_SIZE, address))
        _ioctl(vm, KVM_SET_USER_MEMORY_REGION, slot)

        vcpu = _ioctl(vm, KVM_CREATE_VCPU)
        undo.callback(os.close, vcpu)
        # CPUID goes first: it decides which CR4 bits and instructions KVM allows.
        _ioctl(vcpu, KVM_SET_CPUID2, cpuid)
        sregs = bytearray(_SREGS_SIZE)
        _ioctl(vcpu, KVM_GET_SREGS, sregs)
        _enter_long_mode(sregs, _CR4 | (_CR4_OSXSAVE if features & _CPUID_XSAVE else 0))
        _ioctl(vcpu, KVM_SET_SREGS, sregs)
        general = (0, 0, 0, 0, _XSAVE_AREA, _OPERAND, _STACK_END, 0)
        _ioctl(vcpu, KVM_SET_REGS, bytearray(_REGS.pack(*general, *([0] * 8), _CODE, 0x2)))

        run = undo.enter_context(mmap.mmap(vcpu, _ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE)))
        for port, step in enumerate(steps):
            _expect_output(vcpu, run, port, step)
        reason = _enter(vcpu, run, "hlt")
        if reason != KVM_EXIT_HLT:
            raise _ProbeError(f"hlt: {_explain(run, reason)}")


def _features(cpuid: bytearray) -> int:
    """ECX of leaf 1: an instruction this processor does not have is not asked for."""
    found = _leaf(cpuid, 1)
    return found[2] if found is not None else 0


def supported_cpuid(leaf: int, path: str = "/dev/kvm") -> tuple[int, int, int, int] | None:
    """EAX, EBX, ECX and EDX that a guest of this host's KVM can have at a leaf of CPUID.

    Args:
        leaf: its number.
        path: the device node.

    Returns:
        The registers; ``None`` where KVM has no such leaf, or cannot be asked.
    """
    try:
        kvm = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _leaf(_read_cpuid(kvm), leaf)
    except OSError:
        return None
    finally:
        os.close(kvm)


def _read_cpuid(kvm: int) -> bytearray:
    cpuid = bytearray(_CPUID_HEADER.size + _CPUID_ENTRIES * _CPUID_ENTRY.size)
    _CPUID_HEADER.pack_into(cpuid, 0, _CPUID_ENTRIES, 0)
    _ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid)
    return cpuid


def _leaf(cpuid: bytearray, leaf: int) -> tuple[int, int, int, int] | None:
    count, _ = _CPUID_HEADER.unpack_from(cpuid)
    for index in range(count):
        entry = _CPUID_ENTRY.unpack_from(cpuid, _CPUID_HEADER.size + index * _CPUID_ENTRY.size)
        if entry[0] == leaf:
            return entry[3], entry[4], entry[5], entry[6]
    return None


def _write_guest(memory: mmap.mmap, features: int) -> Sequence[str]:
    """Write tables and code; return the steps' names, in the order of their ports and of their running."""
    struct.pack_into("=Q", memory, _PML4, _PDPT | 0x3)  # present, writable
    struct.pack_into("=Q", memory, _PDPT, _PD | 0x3)
    struct.pack_into("=Q", memory, _PD, 0x83)  # one page of 2 MiB
    struct.pack_into("=QQQ", memory, _GDT, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
    # One 64-bit interrupt gate; the handler lies below 64 KiB, so the upper parts of its address are 0.
    struct.pack_into("=HHHHQ", memory, _IDT + 16 * _BREAKPOINT, _HANDLER, _CODE_SELECTOR, 0x8E00, 0, 0)

    steps = ["entry"]
    code = _put_out(0, _MAGIC_TO_AL)
    if features & _CPUID_CX16:
        code += _put_out(len(steps), _COMPARE_AND_SWAP)
        steps.append("lock cmpxchg16b")
    if features & _CPUID_XSAVE:
        code += _put_out(len(steps), _RESTORE_STATE)
        steps.append("xrstor64")
    handler = _put_out(len(steps), _MAGIC_TO_AL) + _IRETQ
    steps.append("int3")
    code += _INT3 + _put_out(len(steps), _MAGIC_TO_AL) + _HLT
    steps.append("iretq")
    memory[_CODE : _CODE + len(code)] = code
    memory[_HANDLER : _HANDLER + len(handler)] = handler
    return steps


def _put_out(port: int, code: bytes) -> bytes:
    """Code that leaves a value in AL, and ``out port, al`` after it."""
    return code + bytes([0xE6, port])


def _enter_long_mode(sregs: bytearray, cr4: int) -> None:
    """Set what decides the mode; the task register and the local descriptor table are fine as after reset."""
    _SEGMENT.pack_into(sregs, _SREGS_CS, 0, 0xFFFF_FFFF, _CODE_SELECTOR, 11, 1, 0, 0, 1, 1, 1, 0)
    for offset in _SREGS_DATA:
        _SEGMENT.pack_into(sregs, offset, 0, 0xFFFF_FFFF, _DATA_SELECTOR, 3, 1, 0, 1, 1, 0, 1, 0)
    _TABLE.pack_into(sregs, _SREGS_GDT, _GDT, 3 * 8 - 1)
    _TABLE.pack_into(sregs, _SREGS_IDT, _IDT, 16 * (_BREAKPOINT + 1) - 1)
    _SREGS_CONTROL.pack_into(sregs, _SREGS_CR0, _CR0, 0, _PML4, cr4, 0, _EFER)


def _expect_output(vcpu: int, run: mmap.mmap, port: int, step: str) -> None:
    reason = _enter(vcpu, run, step)
    if reason != KVM_EXIT_IO:
        raise _ProbeError(f"{step}: {_explain(run, reason)}")
    _, _, seen, _, offset = _EXIT_IO.unpack_from(run)
    if seen != port or run[offset] != _MAGIC:
        raise _ProbeError(f"{step}: wrong result, {run[offset]:#x} at port {seen}")


def _enter(vcpu: int, run: mmap.mmap, step: str) -> int:
    """Run the guest until it leaves KVM by itself; return the exit reason."""
    for _ in range(_INTERRUPTIONS_LIMIT):
        try:
            _ioctl(vcpu, KVM_RUN)
        except InterruptedError:
            continue
        except OSError as error:
            raise _ProbeError(f"{step}: KVM_RUN failed: {error.strerror}") from error
        (reason,) = _EXIT_REASON.unpack_from(run)
        if reason != KVM_EXIT_INTR:
            return int(reason)
    raise _ProbeError(f"{step}: interrupted {_INTERRUPTIONS_LIMIT} times")


def _explain(run: mmap.mmap, reason: int) -> str:
    if reason == KVM_EXIT_INTERNAL_ERROR:
        return f"KVM internal error, suberror {_EXIT_SUBERROR.unpack_from(run)[0]}"
    if reason == KVM_EXIT_FAIL_ENTRY:
        return f"the processor refused to enter the guest, reason {_EXIT_ENTRY_FAILURE.unpack_from(run)[0]:#x}"
    if reason == KVM_EXIT_SHUTDOWN:
        return "triple fault"
    return f"unexpected KVM exit {reason}"


def _ioctl(fd: int, request: int, argument: int | bytearray = 0) -> int:
    """Call the kernel; a buffer is given by its address, so what the kernel writes is in it afterwards."""
    if isinstance(argument, int):
        return fcntl.ioctl(fd, request, argument)
    return int(fcntl.ioctl(fd, request, argument, True))
