"""The Linux guest: a Debian kernel and a busybox root file system, built from packages not installed here.

Start it with ``qemu-system-x86_64 -kernel KERNEL -initrd INITRD -append "console=ttyS0 quiet ..."`` and
128 MiB of RAM or more. What it does, and its options on the kernel command line, is at the top of
``linux-init.sh``.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hvcore.guests.commands import run_command
from hvcore.guests.cpio import cpio_archive, cpio_character_device, cpio_directory, cpio_file
from hvcore.guests.errors import GuestBuildError
from hvcore.guests.firmware import READY_MARKER

LINUX_READY_MARKER = READY_MARKER + b" linux"
"""How the ready line of the Linux guest begins."""

LINUX_PROMPT = b"guest# "
"""The prompt of the shell of the Linux guest."""

LINUX_COMMAND_LINE = "console=ttyS0 quiet"
"""The kernel command line that the Linux guest needs; its own options are added to it."""

LINUX_MODULES = [
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "virtio_balloon",
    "virtio_rng",
    "virtio_console",
    "button",
    "evdev",
    "qemu_fw_cfg",
    "pvpanic_pci",
    "ata_piix",
    "ahci",
    "nvme",
    "vmw_vsock_virtio_transport",
    "virtiofs",
    "virtio_mem",
]
"""The kernel modules that the Linux guest loads, with what they depend on, as far as the kernel has them."""

LINUX_USB_MODULES = ["xhci_pci", "ehci_pci", "uhci_hcd", "usbhid", "hid_generic", "usb_storage"]
"""The modules that it loads besides when it is to know USB."""

_KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
_USB_KERNEL_META_PACKAGE = "linux-image-amd64"
_BUSYBOX_PACKAGE = "busybox-static"
_STAMP = "guest.json"
_FORMAT = 1
_UPDATE_TIMEOUT = 300.0
_DOWNLOAD_TIMEOUT = 600.0
_LOCAL_TIMEOUT = 120.0
_APT_HINT = (
    "this needs apt-get and dpkg-deb with a Debian amd64 archive: as root run apt-get update and try again,"
    " or copy the directory of a finished guest from a Debian machine"
)
_DIRECTORY_HINT = "give a directory that can be written and has 250 MB free"
_PACKAGE_HINT = "the packages look different from what this version of hvcore knows: update hvcore"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LinuxGuest:
    """A Linux guest that is ready to start.

    Attributes:
        kernel: the file for ``-kernel``.
        initrd: the file for ``-initrd``.
        version: the release of the kernel, as ``uname -r`` prints it in the guest.
    """

    kernel: Path
    initrd: Path
    version: str


def build_linux_guest(directory: Path, *, usb: bool = False, progress: Progress | None = None) -> LinuxGuest:
    """Return the Linux guest of a directory; build it there if it is not there yet.

    A complete guest is reused without running anything. Otherwise the kernel and busybox packages are
    downloaded with ``apt-get download`` and unpacked below the directory; nothing is installed. Builders
    of the same directory wait for each other.

    Args:
        directory: where the guest is kept; it is made if necessary.
        usb: with the kernel for all hardware, which is four times as much to download; the one for virtual machines
            knows nothing of USB.
        progress: called with one line of text for each step, and for each module the kernel lacks.

    Returns:
        The guest.

    Raises:
        GuestBuildError: it could not be built.
    """
    report = progress or _say_nothing
    directory = Path(directory).absolute()
    guest = _finished_guest(directory, usb)
    if guest is not None:
        return guest
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _builder_lock(directory, report):
            return _finished_guest(directory, usb) or _build(directory, usb, report)
    except OSError as error:
        reason = f"the Linux guest could not be written: {error}"
        raise GuestBuildError(reason, hint=_DIRECTORY_HINT) from error


def _say_nothing(_line: str) -> None:
    pass


def _script(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()


def _modules(usb: bool) -> list[str]:
    return [*LINUX_MODULES, *(LINUX_USB_MODULES if usb else ())]


def _recipe_sha256(usb: bool) -> str:
    """Identifies what we put into a guest; a guest of another recipe is built anew."""
    parts = [_script("linux-init.sh"), _script("linux-dhcp.sh"), " ".join(_modules(usb)).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _finished_guest(directory: Path, usb: bool) -> LinuxGuest | None:
    try:
        stamp = json.loads((directory / _STAMP).read_bytes())
        if stamp["format"] != _FORMAT or stamp["init_sha256"] != _recipe_sha256(usb):
            return None
        guest = LinuxGuest(directory / stamp["kernel"], directory / stamp["initrd"], str(stamp["version"]))
        sizes = [guest.kernel.stat().st_size, guest.initrd.stat().st_size]
        return guest if sizes == stamp["sizes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextlib.contextmanager
def _builder_lock(directory: Path, report: Progress) -> Iterator[None]:
    with (directory / ".lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another builder of this guest")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(directory: Path, usb: bool, report: Progress) -> LinuxGuest:
    # We hold the lock: whoever made these is dead.
    for leftover in directory.glob(".build-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as name:
        work = Path(name)
        packages = _download(work, usb, report)
        root = work / "unpacked"
        for package in packages:
            report(f"unpacking {package.name}")
            run_command(
                ["dpkg-deb", "-x", str(package), str(root)],
                cwd=work,
                timeout=_LOCAL_TIMEOUT,
                what=f"the package {package.name} could not be unpacked",
                hint=_DIRECTORY_HINT,
            )
        kernel = _only_file(root, ["boot/vmlinuz-*"], "kernel")
        version = kernel.name.removeprefix("vmlinuz-")
        report(f"packing the root file system for Linux {version}")
        recipe = _recipe_sha256(usb)
        # The recipe is in the name, so a guest that someone is about to start never changes under them.
        initrd = work / f"initrd-{version}-{recipe[:12]}.gz"
        initrd.write_bytes(_compress(_root_file_system(root, _modules(usb), report)))
        kernel.chmod(0o644)
        initrd.chmod(0o644)
        stamp = {
            "format": _FORMAT,
            "version": version,
            "kernel": kernel.name,
            "initrd": initrd.name,
            "sizes": [kernel.stat().st_size, initrd.stat().st_size],
            "packages": sorted(package.name for package in packages),
            "init_sha256": recipe,
        }
        stamp_file = work / _STAMP
        stamp_file.write_text(json.dumps(stamp, indent=1) + "\n", encoding="utf-8")
        for file in (kernel, initrd, stamp_file):
            os.replace(file, directory / file.name)
    report(f"the Linux guest is in {directory}")
    return LinuxGuest(directory / kernel.name, directory / initrd.name, version)


def _only_file(root: Path, patterns: list[str], what: str) -> Path:
    found = sorted(file for pattern in patterns for file in root.glob(pattern) if file.is_file())
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "nothing"
        raise GuestBuildError(f"one {what} was expected in the packages, found {names}", hint=_PACKAGE_HINT)
    return found[0]


# ---- packages -------------------------------------------------------------------------------------------


def _download(work: Path, usb: bool, report: Progress) -> list[Path]:
    try:
        return _download_once(work, usb, report)
    except GuestBuildError:
        # No package lists, or lists that name packages which are gone. Only root can renew them.
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise
    report("renewing the package lists")
    run_command(
        ["apt-get", *_apt_options(), "update"],
        cwd=work,
        timeout=_UPDATE_TIMEOUT,
        what="the package lists could not be renewed",
        hint="check /etc/apt/sources.list and the network",
    )
    return _download_once(work, usb, report)


def _download_once(work: Path, usb: bool, report: Progress) -> list[Path]:
    kernel_package = _kernel_package(work, _USB_KERNEL_META_PACKAGE if usb else _KERNEL_META_PACKAGE)
    report(f"downloading {kernel_package} and {_BUSYBOX_PACKAGE}")
    run_command(
        ["apt-get", *_apt_options(), "download", kernel_package, _BUSYBOX_PACKAGE],
        cwd=work,
        timeout=_DOWNLOAD_TIMEOUT,
        what="the packages of the Linux guest could not be downloaded",
        hint=_APT_HINT,
    )
    packages = sorted(work.glob("*.deb"))
    if len(packages) != 2:
        names = ", ".join(package.name for package in packages) or "nothing"
        raise GuestBuildError(f"apt-get has downloaded {names} instead of two packages", hint=_APT_HINT)
    return packages


def _apt_options() -> list[str]:
    # apt of root drops to a user who cannot write to our directory, and warns about it.
    return ["-q", "-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else ["-q"]


def _kernel_package(work: Path, meta_package: str) -> str:
    output = run_command(
        ["apt-cache", "depends", meta_package],
        cwd=work,
        timeout=_LOCAL_TIMEOUT,
        what=f"apt knows no package {meta_package}",
        hint=_APT_HINT,
    )
    match = re.search(r"^ *\|?Depends: (linux-image-\S+)$", output, re.MULTILINE)
    if match is None:
        reason = f"the package {meta_package} names no kernel"
        raise GuestBuildError(reason, hint=_APT_HINT, output=output)
    return match[1]


# ---- root file system -----------------------------------------------------------------------------------


def _root_file_system(root: Path, names: Sequence[str], report: Progress) -> bytes:
    busybox = _only_file(root, ["bin/busybox", "usr/bin/busybox"], "busybox")
    modules = _modules_in_load_order(root, names, report)
    entries = [cpio_directory(name) for name in ("bin", "dev", "etc", "mnt", "modules", "proc", "sys")]
    entries += [
        cpio_directory("tmp", 0o1777),
        # The kernel opens it for init before init has mounted anything.
        cpio_character_device("dev/console", 5, 1),
        cpio_file("bin/busybox", busybox.read_bytes(), 0o755),
        cpio_file("init", _script("linux-init.sh"), 0o755),
        cpio_file("etc/dhcp.sh", _script("linux-dhcp.sh"), 0o755),
        cpio_file("etc/passwd", b"root::0:0:root:/:/bin/sh\n"),
        cpio_file("etc/group", b"root:x:0:\n"),
        cpio_file("etc/modules", "".join(f"{name}\n" for name, _data in modules).encode()),
    ]
    entries += [cpio_file(f"modules/{name}.ko", data) for name, data in modules]
    return cpio_archive(entries)


def _modules_in_load_order(root: Path, names: Sequence[str], report: Progress) -> list[tuple[str, bytes]]:
    folders = [folder for folder in (root / "lib/modules", root / "usr/lib/modules") if folder.is_dir()]
    files = {_module_name(file.name): file for folder in folders for file in folder.rglob("*.ko*")}
    built_in = {
        _module_name(line.rpartition("/")[2])
        for folder in folders
        for listing in folder.glob("*/modules.builtin")
        for line in listing.read_text(encoding="ascii").split()
    }
    order: dict[str, bytes] = {}
    visited: set[str] = set()

    def add(name: str) -> None:
        if name in visited or name in built_in:
            return
        visited.add(name)
        data = _module_data(files[name]) if name in files else None
        if data is None:
            report(f"this kernel has no module {name}, the guest goes without it")
            return
        for dependency in _module_dependencies(data):
            add(dependency)
        order[name] = data

    for name in names:
        add(name)
    return list(order.items())


def _module_name(file_name: str) -> str:
    return file_name.partition(".ko")[0].replace("-", "_")


def _module_data(file: Path) -> bytes | None:
    if file.suffix == ".ko":
        return file.read_bytes()
    if file.suffix == ".xz":
        try:
            return lzma.decompress(file.read_bytes())
        except lzma.LZMAError as error:
            raise GuestBuildError(
                f"the kernel module {file.name} of the package cannot be unpacked: {error}",
                hint="remove the downloaded package and try again",
            ) from error
    return None


def _module_dependencies(data: bytes) -> list[str]:
    match = re.search(rb"\0depends=([^\0]*)\0", data)
    names = match[1].decode("ascii").split(",") if match else []
    return [_module_name(name) for name in names if name]


def _compress(data: bytes) -> bytes:
    # No file name and no time in the header: the same content gives the same bytes.
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as stream:
        stream.write(data)
    return packed.getvalue()
