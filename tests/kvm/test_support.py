"""What the QEMU program lacks is found before it is started, with what it has instead."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from hvcore import Deadline
from hvcore_kvm import capabilities as capabilities_module
from hvcore_kvm.capabilities import QemuCapabilities, capabilities_of
from hvcore_kvm.command_line import device, json_option, keyed
from hvcore_kvm.support import check_support, supported_values

pytestmark = pytest.mark.qemu


@pytest.fixture(scope="module")
def capabilities(tmp_path_factory: pytest.TempPathFactory) -> QemuCapabilities:
    return capabilities_of("qemu-system-x86_64", str(tmp_path_factory.mktemp("cache")), Deadline.after(60))


def test_the_program_is_asked_for_all_that_checks_need(capabilities: QemuCapabilities) -> None:
    """Each list has what every QEMU has, and nothing is empty."""
    for name, member in {
        "cpu_models": "qemu64",
        "cpu_features": "aes",
        "devices": "virtio-blk-pci",
        "objects": "throttle-group",
        "accelerators": "tcg",
        "block_drivers": "qcow2",
        "character_devices": "socket",
        "displays": "none",
        "network_backends": "user",
        "audio_drivers": "wav",
        "migration_capabilities": "multifd",
    }.items():
        assert member in getattr(capabilities, name), name
    assert capabilities.arch == "x86_64"
    assert "strict" in capabilities.options["boot-opts"]


@pytest.mark.parametrize(
    ("option", "code", "where", "instead"),
    [
        (device("virtio-sound-pci", "a", origin="params.sound"), "unknown-device", "params.sound", "ac97"),
        (device("e1000e", "a", origin="nics[1]"), "unknown-device", "nics[1]", "virtio-net"),
        (device("nvme", "a", origin="disks[0]"), "unknown-device", "disks[0]", "virtio-blk"),
        (json_option("object", {"qom-type": "gone", "id": "a"}, origin="params.x"), "unknown-object", "params.x", None),
        (
            json_option("netdev", {"type": "gone", "id": "a"}, origin="nics[0]"),
            "unknown-netdev",
            "nics[0]",
            "virtio-net",
        ),
        (
            json_option("audiodev", {"driver": "gone", "id": "a"}, origin="params.sound_backend"),
            "unknown-audiodev",
            "params.sound_backend",
            "wav",
        ),
        (keyed("chardev", "gone", {"id": "a"}, origin="consoles"), "unknown-chardev", "consoles", None),
    ],
)
def test_what_a_program_lacks_is_said_with_what_it_has(
    capabilities: QemuCapabilities, option: Any, code: str, where: str, instead: str | None
) -> None:
    """The finding is at the parameter the option came from, and lists the values that work."""
    kind = option.value.get("driver", "")
    poorer = attrs.evolve(capabilities, devices=tuple(d for d in capabilities.devices if d != kind))
    (finding,) = check_support([option], poorer)
    assert (finding.code, finding.path) == (code, where)
    if instead is not None:
        assert finding.hint is not None
        assert instead in finding.hint
    if kind in capabilities.devices:
        assert list(check_support([option], capabilities)) == []


def test_a_block_driver_below_others_is_found(capabilities: QemuCapabilities) -> None:
    """Modules of QEMU are packages of their own; the hint names it."""
    poorer = attrs.evolve(capabilities, block_drivers=tuple(d for d in capabilities.block_drivers if d != "rbd"))
    node = {"driver": "throttle", "file": {"driver": "raw", "file": {"driver": "rbd", "pool": "a", "image": "b"}}}
    (finding,) = check_support([json_option("blockdev", node, origin="disks[0]")], poorer)
    assert finding.code == "unknown-blockdev"
    assert "rbd" in finding.message


def test_unknown_models_features_and_machines_name_the_nearest(host: Any) -> None:
    """And list what there is."""
    params = {"cpu_model": "Haswel", "cpu_features": {"avx3": True}, "machine": "pc-q35-99.9"}
    findings = {finding.path: finding for finding in host.driver.validate_parameters(host.instance(params=params))}
    assert set(findings) == {"params.cpu_model", "params.cpu_features", "params.machine"}
    assert "did you mean Haswell" in findings["params.cpu_model"].hint
    assert "did you mean" in findings["params.cpu_features"].hint
    assert "q35" in findings["params.machine"].hint


def test_levels_of_the_psabi_are_models_on_every_qemu(capabilities: QemuCapabilities) -> None:
    """QEMU has no such names; they are offered all the same."""
    assert {"x86-64-v2", "x86-64-v4", "qemu64"} <= set(supported_values(capabilities)["params.cpu_model"])


@pytest.fixture
def without_modules(newer_qemu: str, tmp_path: Path) -> str:
    """A QEMU whose modules for SPICE and ALSA are not installed."""
    script = Path(newer_qemu).read_text()
    modules = tmp_path / "modules"
    modules.mkdir()
    (there,) = re.findall(r"QEMU_MODULE_DIR=(\S+)", script)
    for module in Path(there).iterdir():
        if "spice" not in module.name and "alsa" not in module.name:
            (modules / module.name).symlink_to(module)
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(script.replace(f"QEMU_MODULE_DIR={there}", f"QEMU_MODULE_DIR={modules}"))
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("given", "code", "where"),
    [
        ({"consoles": ("spice",), "params": {"display_device": "std"}}, "unknown-spice", "params.spice"),
        ({"params": {"sound": "ac97", "sound_backend": "alsa"}}, "unknown-audiodev", "params.sound_backend"),
    ],
)
def test_modules_that_are_not_installed(
    make_host: Any, without_modules: str, given: dict[str, Any], code: str, where: str
) -> None:
    """They are found before QEMU is started, and with them nothing is."""
    host, whole = make_host(qemu=without_modules), make_host()
    params = {"machine": "pc", "accel": "tcg", **given.get("params", {})}
    definition = {"name": "web1", "memory": "64MiB", **given, "params": params}
    assert [(f.code, f.path) for f in host.driver.validate_parameters(definition)] == [(code, where)]
    assert list(whole.driver.validate_parameters(definition)) == []


def test_a_module_that_is_installed_later_is_seen(tmp_path: Path) -> None:
    """What is known of a program is asked again once its modules have changed."""
    program = tmp_path / "bin" / "qemu"
    modules = tmp_path / "lib" / "qemu"
    program.parent.mkdir()
    program.touch()
    before = capabilities_module._identity(str(program))
    modules.mkdir(parents=True)
    first = capabilities_module._identity(str(program))
    (modules / "audio-pa.so").touch()
    os.utime(modules, ns=(1, 1))
    assert len({before, first, capabilities_module._identity(str(program))}) == 3
