"""The escape hatch: words as a shell reads them, options of QEMU only, and none that the driver owns."""

from __future__ import annotations

from typing import Any

import pytest

from hvcore import InvalidParameters
from hvcore_kvm.extra_arguments import ALLOWED, check_extra_arguments, split_extra_arguments


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", ()),
        ("   \n\t ", ()),
        ("-device virtio-rng-pci,id=x", (("-device", "virtio-rng-pci,id=x"),)),
        ("--device x -seed 7", (("-device", "x"), ("-seed", "7"))),
        ("-semihosting -d guest_errors", (("-semihosting",), ("-d", "guest_errors"))),
        ("-fsdev 'local,id=a,path=/srv/a b'", (("-fsdev", "local,id=a,path=/srv/a b"),)),
        ('-global "kvm-pit.lost_tick_policy=discard"', (("-global", "kvm-pit.lost_tick_policy=discard"),)),
        ("-device a\\ b", (("-device", "a b"),)),
        ("-device '' -seed 1", (("-device", ""), ("-seed", "1"))),
        ("-device -m -seed 1", (("-device", "-m"), ("-seed", "1"))),
        ("-device '$HOME `id` *'", (("-device", "$HOME `id` *"),)),
        ("-device 'zwölf'", (("-device", "zwölf"),)),
    ],
)
def test_words(text: str, options: Any) -> None:
    """Quotes and backslashes count, nothing is expanded, and a value may look like an option."""
    assert split_extra_arguments(text) == options
    assert check_extra_arguments(text) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("disk.img", "no option"),
        ("-", "no option"),
        ("--", "no option"),
        ("'' -seed 1", "no option"),
        ("-device", "needs a value"),
        ("-seed 1 -object", "needs a value"),
        ("-device 'open", "cannot be split"),
        ("-device open\\", "cannot be split"),
        ("-device a\0b", "NUL"),
        ("-device \udcff", "UTF-8"),
        ("-device " + "x" * 40000, "characters"),
        ("-nosuchoption", "belongs to the driver, or is not an option"),
        ("-Device x", "belongs to the driver, or is not an option"),
        ("-device=x", "belongs to the driver, or is not an option"),
        ("---device x", "belongs to the driver, or is not an option"),
        ("-m 1G", "use memory"),
        ("--m 1G", "use memory"),
        ("-smp 4", "use vcpus"),
        ("-M pc", "use params.machine"),
        ("-enable-kvm", "use params.accel"),
        ("-append x", "use params.cmdline"),
        ("-k de", "use params.keymap"),
        ("-runas nobody", "use security_model"),
        ("-action panic=none", "use params.on_reboot"),
        ("-S", "use start with paused"),
        ("-uuid x", "use uuid"),
    ],
)
def test_what_is_refused(text: str, problem: str) -> None:
    """Each refusal says what is wrong, and which parameter to use instead."""
    said = check_extra_arguments(text)
    assert said is not None
    assert problem in said
    assert len(said) < 300


@pytest.mark.parametrize(
    "option",
    [
        *(
            "daemonize",
            "pidfile",
            "incoming",
            "loadvm",
            "mon",
            "qmp",
            "qmp-pretty",
            "monitor",
            "gdb",
            "s",
            "readconfig",
        ),
        *("writeconfig", "add-fd", "sandbox", "chroot", "runas", "run-with", "nodefaults", "no-user-config", "display"),
        *("vnc", "spice", "cdrom", "hda", "fda", "mtdblock", "sd", "pflash", "bios", "kernel", "boot", "no-shutdown"),
        *("no-reboot", "preconfig", "only-migratable", "msg-nothing", "name", "cpu", "accel", "machine", "overcommit"),
    ],
)
def test_what_the_driver_owns_is_never_added(option: str) -> None:
    """Options by which its process, monitors, confinement or images could be changed."""
    assert option not in ALLOWED
    assert check_extra_arguments(f"-{option} x") is not None


_OWN = (
    "balloon0",
    "control",
    "disk-1",
    "nic-x",
    "iothread0",
    "serial0",
    "com1",
    "firmware-vars",
    "group-a",
    "usb-device0",
)


@pytest.mark.qemu
@pytest.mark.parametrize("ident", _OWN)
@pytest.mark.parametrize("form", ["-device virtio-rng-pci,id={}", '-object \'{{"qom-type":"rng-builtin","id":"{}"}}\''])
def test_ids_of_the_driver_are_its_own(host: Any, form: str, ident: str) -> None:
    """An id that the driver gives is found before QEMU stumbles over it, in either way of writing."""
    given = host.instance(params={"extra_args": form.format(ident)})
    with pytest.raises(InvalidParameters, match="which is the driver's"):
        host.driver.start_instance(given)
    assert host.driver.validate_parameters(host.instance(params={"extra_args": form.format("mine")})).ok


@pytest.mark.qemu
def test_an_instance_with_them_is_marked(host: Any) -> None:
    """Whoever looks at it sees that its options are not all the driver's, and a plan says where they come from."""
    given = host.instance(params={"extra_args": "-device 'virtio-rng-pci,id=mine' -semihosting"})
    plan = host.driver.plan_start(given)
    added = [option.words for option in plan.options if option.origin == "params.extra_args"]
    assert added == [("-device", "virtio-rng-pci,id=mine"), ("-semihosting",)]
    assert any("extra_args" in note for note in plan.notes)
    host.driver.start_instance(host.instance(params={"extra_args": "-device 'virtio-rng-pci,id=mine'"}))
    assert host.driver.get_instance_info("web1").marks == ("extra-args",)


@pytest.mark.qemu
def test_what_qemu_says_of_them_comes_back(host: Any) -> None:
    """An option that QEMU refuses ends the start with QEMU's own words."""
    from hvcore import SpawnFailed

    with pytest.raises(SpawnFailed, match="no-such-device"):
        host.driver.start_instance(host.instance(params={"extra_args": "-device no-such-device"}))
