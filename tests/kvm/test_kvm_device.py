"""The probe of ``/dev/kvm``: the real device, a device of our making, and the guest's code in QEMU's own emulation."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_mock import MockerFixture

from hvcore_kvm import kvm_device
from hvcore_kvm.kvm_device import KvmLevel, forget_kvm_verdicts, probe_kvm

DEVICE = "/dev/kvm"
CX16, XSAVE = 1 << 13, 1 << 26
PAGE = 4096
STEPS = ["entry", "lock cmpxchg16b", "xrstor64", "int3", "iretq"]
HLT = struct.pack("=8xI", 5)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Verdicts of one test are not those of the next."""
    forget_kvm_verdicts()
    yield
    forget_kvm_verdicts()


def open_descriptors() -> list[str]:
    """What this process has open."""
    listed = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sorted(os.readlink(link) for link in listed if os.path.lexists(link))  # the listing's own is gone


@pytest.fixture
def leakproof(mocker: MockerFixture) -> Iterator[None]:
    """A check afterwards that every descriptor and every mapping made in between is closed."""
    mappings: list[mmap.mmap] = []

    class RecordedMapping(mmap.mmap):
        def __init__(self, *arguments: int) -> None:
            mappings.append(self)

    mocker.patch.object(kvm_device.mmap, "mmap", RecordedMapping)
    before = open_descriptors()
    yield
    assert open_descriptors() == before
    assert all(mapping.closed for mapping in mappings)


def output(port: int, value: int = 0x5A) -> bytes:
    """The first two pages of ``kvm_run`` after an ``out``."""
    return struct.pack("=8xI20xBBHIQ", 2, 1, 1, port, 1, PAGE).ljust(PAGE, b"\0") + bytes([value])


class FakeKvm:
    """A KVM behind ``/dev/null``: each KVM_RUN takes the next of ``exits``, page contents or an error.

    A regular file is the vcpu, since it can be mapped as a vcpu is.
    """

    def __init__(self, mocker: MockerFixture, directory: Path) -> None:
        self.exits: list[bytes | OSError] = [*(output(port) for port in range(len(STEPS))), HLT]
        self.features = CX16 | XSAVE
        self.errors: dict[int, OSError] = {}
        self.version = 12
        self.calls: list[int] = []
        self.sregs = b""
        self._vcpu = directory / "vcpu"
        self._vcpu.write_bytes(bytes(3 * PAGE))
        mocker.patch.object(kvm_device, "_ioctl", self.ioctl)
        mocker.patch.object(kvm_device.platform, "machine", return_value="x86_64")

    def ioctl(self, fd: int, request: int, argument: int | bytearray = 0) -> int:
        """Stand in for the kernel."""
        os.fstat(fd)  # a closed descriptor is a fault of the probe
        self.calls.append(request)
        if request in self.errors:
            raise self.errors[request]
        match request:
            case kvm_device.KVM_GET_API_VERSION:
                return self.version
            case kvm_device.KVM_CREATE_VM:
                return os.open("/dev/null", os.O_RDWR)
            case kvm_device.KVM_CREATE_VCPU:
                return os.open(self._vcpu, os.O_RDWR)
            case kvm_device.KVM_GET_VCPU_MMAP_SIZE:
                return 3 * PAGE
            case kvm_device.KVM_GET_SUPPORTED_CPUID:
                assert isinstance(argument, bytearray)
                struct.pack_into("=II7I12x", argument, 0, 1, 0, 1, 0, 0, 0, 0, self.features, 0)
            case kvm_device.KVM_SET_SREGS:
                self.sregs = bytes(argument)
            case kvm_device.KVM_RUN:
                leaving = self.exits.pop(0)
                if isinstance(leaving, OSError):
                    raise leaving
                os.pwrite(fd, leaving, 0)
        return 0


@pytest.fixture
def fake(mocker: MockerFixture, tmp_path: Path, leakproof: None) -> FakeKvm:
    """A fake KVM, of which nothing may be left open."""
    return FakeKvm(mocker, tmp_path)


@pytest.mark.kvm
def test_the_real_device_gets_a_verdict_and_nothing_is_left_open(leakproof: None) -> None:
    """The device of this host is FULL or LIMITED with a reason, and neither descriptors nor mappings leak."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR))
    except OSError as error:
        pytest.skip(f"{DEVICE}: {error.strerror}")

    verdict = probe_kvm(DEVICE)

    assert verdict.level in (KvmLevel.FULL, KvmLevel.LIMITED)
    assert verdict.reason
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        flags = {flag for line in cpuinfo if line.startswith("flags") for flag in line.split()}
    if os.uname().machine == "x86_64" and not flags & {"vmx", "svm"}:
        assert verdict.level is KvmLevel.LIMITED
        assert "64-bit kernel code" in verdict.reason


def test_a_missing_device(tmp_path: Path) -> None:
    """A path that does not exist is NONE, with advice."""
    path = str(tmp_path / "kvm")

    verdict = probe_kvm(path)

    assert (verdict.level, verdict.reason) == (KvmLevel.NONE, f"{path} is not there")
    assert "kvm_intel" in (verdict.hint or "")


def test_a_regular_file(tmp_path: Path, leakproof: None) -> None:
    """A file in the device's place is NONE, and the reason says what is wrong with it."""
    path = tmp_path / "kvm"
    path.write_bytes(b"")

    verdict = probe_kvm(str(path))

    assert (verdict.level, verdict.reason) == (KvmLevel.NONE, f"{path} is not a character device")


def test_a_device_that_is_not_kvm(leakproof: None) -> None:
    """Another character device is NONE: it does not know KVM's requests."""
    verdict = probe_kvm("/dev/null")

    assert verdict.level is KvmLevel.NONE
    assert verdict.reason.startswith("/dev/null is not a KVM device: ")


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EACCES, "group kvm"), (errno.EPERM, "group kvm"), (errno.ENODEV, "kvm_amd"), (errno.ENXIO, "kvm_amd")],
)
def test_a_device_that_does_not_open(mocker: MockerFixture, number: int, advice: str) -> None:
    """A refused open is NONE, with the kernel's word for it and advice that fits."""
    mocker.patch.object(kvm_device.os, "open", side_effect=OSError(number, os.strerror(number)))

    verdict = probe_kvm(DEVICE)

    assert verdict.level is KvmLevel.NONE
    assert verdict.reason == f"/dev/kvm cannot be opened by this user: {os.strerror(number)}"
    assert advice in (verdict.hint or "")


def test_another_version_of_the_interface(fake: FakeKvm) -> None:
    """A KVM with another API version is NONE, and is asked nothing else."""
    fake.version = 11

    verdict = probe_kvm("/dev/null")

    assert verdict.level is KvmLevel.NONE
    assert verdict.reason == "/dev/null speaks version 11 of the KVM interface instead of 12"
    assert fake.calls == [kvm_device.KVM_GET_API_VERSION]


def test_no_virtual_machine_can_be_made(fake: FakeKvm) -> None:
    """A KVM that makes no VM is NONE: nothing at all would run."""
    fake.errors[kvm_device.KVM_CREATE_VM] = OSError(errno.EBUSY, "Device or resource busy")

    verdict = probe_kvm("/dev/null")

    assert verdict.level is KvmLevel.NONE
    assert verdict.reason.endswith("makes no virtual machine: Device or resource busy")


def test_a_kvm_that_does_every_step(fake: FakeKvm) -> None:
    """A KVM in which all steps work and the guest halts is FULL."""
    verdict = probe_kvm("/dev/null")

    assert (verdict.level, verdict.reason, verdict.hint) == (KvmLevel.FULL, "hardware virtualisation works", None)
    assert fake.exits == []


@pytest.mark.parametrize(
    ("leaving", "what"),
    [
        (struct.pack("=8xI20xI", 17, 1), "KVM internal error, suberror 1"),
        (struct.pack("=8xI20xQ", 9, 0x80000021), "the processor refused to enter the guest, reason 0x80000021"),
        (struct.pack("=8xI", 8), "triple fault"),
        (struct.pack("=8xI", 6), "unexpected KVM exit 6"),
        (HLT, "unexpected KVM exit 5"),
        (OSError(errno.EFAULT, "Bad address"), "KVM_RUN failed: Bad address"),
    ],
)
@pytest.mark.parametrize("step", range(len(STEPS)))
def test_a_step_that_ends_the_guest(fake: FakeKvm, step: int, leaving: bytes | OSError, what: str) -> None:
    """Whatever ends the guest early makes the KVM LIMITED, and the reason names the step and the end."""
    fake.exits[step] = leaving

    verdict = probe_kvm("/dev/null")

    assert verdict.level is KvmLevel.LIMITED
    assert verdict.reason == f"it cannot run 64-bit kernel code ({STEPS[step]}: {what})"
    assert "tcg" in (verdict.hint or "")


@pytest.mark.parametrize("leaving", [output(1, value=0), output(0)], ids=["wrong value", "repeated step"])
def test_a_step_with_a_wrong_result(fake: FakeKvm, leaving: bytes) -> None:
    """An instruction that leaves a wrong value, or a step that comes twice, makes the KVM LIMITED at once."""
    fake.exits[1] = leaving

    verdict = probe_kvm("/dev/null")

    assert verdict.level is KvmLevel.LIMITED
    assert "lock cmpxchg16b: wrong result" in verdict.reason
    assert fake.calls.count(kvm_device.KVM_RUN) == 2


def test_a_guest_that_does_not_halt(fake: FakeKvm) -> None:
    """Another exit where the halt is due makes the KVM LIMITED."""
    fake.exits[-1] = struct.pack("=8xI20xI", 17, 3)

    assert probe_kvm("/dev/null").reason.endswith("(hlt: KVM internal error, suberror 3)")


@pytest.mark.parametrize(
    "name",
    [name for name in vars(kvm_device) if name.startswith(("KVM_GET_S", "KVM_GET_V", "KVM_SET", "KVM_CREATE_VC"))],
)
def test_a_refused_request(fake: FakeKvm, name: str) -> None:
    """A KVM that refuses to set up the vcpu is LIMITED, with the kernel's word for it, and never runs it."""
    fake.errors[getattr(kvm_device, name)] = OSError(errno.EINVAL, "Invalid argument")

    verdict = probe_kvm("/dev/null")

    assert verdict.level is KvmLevel.LIMITED
    assert verdict.reason == "it cannot set up a 64-bit virtual CPU (Invalid argument)"
    assert kvm_device.KVM_RUN not in fake.calls


def test_signals_are_no_verdict(fake: FakeKvm) -> None:
    """A few interruptions, told by the error or by the exit reason, change nothing."""
    fake.exits[2:2] = [InterruptedError(errno.EINTR, "Interrupted"), struct.pack("=8xI", 10)] * 3

    assert probe_kvm("/dev/null").level is KvmLevel.FULL


def test_endless_interruptions_end(fake: FakeKvm) -> None:
    """A guest that is interrupted all the time is given up."""
    fake.exits = [InterruptedError(errno.EINTR, "Interrupted")] * 5000

    assert probe_kvm("/dev/null").reason.endswith("(entry: interrupted 1000 times)")


@pytest.mark.parametrize(("features", "names"), [(0, 3), (CX16, 4), (XSAVE, 4)])
def test_missing_processor_features_are_not_asked_for(fake: FakeKvm, features: int, names: int) -> None:
    """A processor without cx16 or xsave is FULL without those steps, and gets no CR4 bit it does not know."""
    fake.features = features
    fake.exits = [*(output(port) for port in range(names)), HLT]

    assert probe_kvm("/dev/null").level is KvmLevel.FULL
    (cr4,) = struct.unpack_from("=Q", fake.sregs, 0xE0 + 24)
    assert bool(cr4 & 1 << 18) is bool(features & XSAVE)


def test_other_architectures(fake: FakeKvm, mocker: MockerFixture) -> None:
    """Elsewhere a virtual machine is enough for FULL, and the reason owns up to it."""
    mocker.patch.object(kvm_device.platform, "machine", return_value="aarch64")

    verdict = probe_kvm("/dev/null")

    assert verdict.level is KvmLevel.FULL
    assert "not probed further on this architecture, aarch64" in verdict.reason
    assert fake.calls == [kvm_device.KVM_GET_API_VERSION, kvm_device.KVM_CREATE_VM]


def test_a_verdict_is_kept_until_it_is_forgotten(fake: FakeKvm, mocker: MockerFixture) -> None:
    """A second probe asks nothing, one by another user or after forgetting asks again."""
    fake.version = 11
    probe_kvm("/dev/null")
    probe_kvm("/dev/null")
    assert len(fake.calls) == 1

    forget_kvm_verdicts()
    probe_kvm("/dev/null")
    assert len(fake.calls) == 2

    mocker.patch.object(kvm_device.os, "geteuid", return_value=12345)
    probe_kvm("/dev/null")
    assert len(fake.calls) == 3


def kernel_for_emulation(directory: Path) -> Path:
    """A multiboot kernel which puts the probe's guest where it belongs and enters it as the probe's registers do.

    Where the guest would halt, it puts AL out to port 0xf4 instead, which ends QEMU with the status 2 * AL + 1.
    """
    with mmap.mmap(-1, kvm_device._MEMORY_SIZE) as memory:
        assert kvm_device._write_guest(memory, CX16 | XSAVE) == STEPS
        image = bytearray(memory[:0xB000])
    halt = image.index(b"\xe6\x04\xf4", kvm_device._CODE) + 2
    image[halt : halt + 3] = b"\xe6\xf4\xf4"

    base, entry, long_mode, tables, start = 0x100000, 0x100020, 0x100080, 0x1000C0, 0x1000E0
    end = start + len(image)
    flags = 1 << 16  # the load addresses below are to be believed
    header = struct.pack("<8I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, base, base, end, end, entry)
    cr4 = kvm_device._CR4 | kvm_device._CR4_OSXSAVE
    protected = (
        b"\xfa\xfc\xbe"
        + struct.pack("<I", start)  # cli; cld; mov esi, start
        + b"\x31\xff\xb9"
        + struct.pack("<I", len(image))
        + b"\xf3\xa4"  # xor edi, edi; mov ecx, length; rep movsb
        + b"\x0f\x01\x15"
        + struct.pack("<I", tables)  # lgdt
        + b"\x0f\x01\x1d"
        + struct.pack("<I", tables + 6)  # lidt
        + b"\xb8"
        + struct.pack("<I", kvm_device._PML4)
        + b"\x0f\x22\xd8"  # mov cr3
        + b"\xb8"
        + struct.pack("<I", cr4)
        + b"\x0f\x22\xe0"  # mov cr4
        + b"\xb9\x80\x00\x00\xc0\xb8\x00\x01\x00\x00\x31\xd2\x0f\x30"  # efer: long mode enable
        + b"\xb8"
        + struct.pack("<I", kvm_device._CR0)
        + b"\x0f\x22\xc0"  # mov cr0
        + b"\xea"
        + struct.pack("<IH", long_mode, kvm_device._CODE_SELECTOR)  # ljmp
    )
    long = (
        b"\xb8"
        + struct.pack("<I", kvm_device._DATA_SELECTOR)
        + b"\x8e\xd0\x8e\xd8"  # mov ss, ds
        + b"\xbf"
        + struct.pack("<I", kvm_device._OPERAND)  # mov edi
        + b"\xbe"
        + struct.pack("<I", kvm_device._XSAVE_AREA)  # mov esi
        + b"\xbc"
        + struct.pack("<I", kvm_device._STACK_END)  # mov esp
        + b"\xb8"
        + struct.pack("<I", kvm_device._CODE)
        + b"\xff\xe0"  # mov eax; jmp rax
    )
    pointers = struct.pack("<HIHI", 23, kvm_device._GDT, 63, kvm_device._IDT)
    kernel = bytearray(start - base)
    for address, part in ((base, header), (entry, protected), (long_mode, long), (tables, pointers)):
        kernel[address - base : address - base + len(part)] = part
    path = directory / "probe.bin"
    path.write_bytes(kernel + image)
    return path


@pytest.mark.qemu
def test_the_guest_is_right_where_nothing_is_missing(tmp_path: Path) -> None:
    """On QEMU's emulated processor, which has all features, every step works: a failure under KVM is KVM's."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not installed")
    kernel = kernel_for_emulation(tmp_path)
    command = [qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg", "-cpu", "max"]
    command += ["-m", "32", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel", str(kernel)]

    done = subprocess.run(command, capture_output=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0x5A << 1 | 1, b"")
