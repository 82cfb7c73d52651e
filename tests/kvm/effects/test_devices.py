"""Parameters of the other devices take effect."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from kvm_effect import PATIENCE, Effect, File, Folder, Probe, Question, of, proves, rows, type_of

pytestmark = pytest.mark.qemu


def _there(ident: str) -> Question:
    return lambda probe: ident in probe.children("/machine/peripheral")


def _chardev(label: str) -> Question:
    """Whether a character device is there, and listens."""
    return lambda probe: (
        "server=on" in next(row["filename"] for row in probe.qmp("query-chardev") if row["label"] == label)
    )


def _channels(probe: Probe) -> list[str]:
    """The backends of the guest agent's channel."""
    return [row["label"] for row in probe.qmp("query-chardev") if row["label"] == "agent"]


def _tpm(probe: Probe) -> list[str]:
    return [row["model"] for row in probe.qmp("query-tpm")]


def _reboots(probe: Probe) -> bool:
    """Whether the chipset's watchdog may restart the machine."""
    return not probe.get(probe.unattached("ICH9-LPC"), "noreboot")


def _card(kind: str, device: str, *needs: str) -> Effect:
    shows = {"params.display_device": (type_of("display0"), device)}
    return Effect(given={"params": {"display_device": kind}}, shows=shows, needs=needs)


def _sound(kind: str, device: str, **more: Any) -> Effect:
    return Effect(given={"params": {"sound": kind, **more}}, shows={"params.sound": (type_of("sound0"), device)})


def _usb(probe: Probe) -> dict[str, str]:
    """The ids of USB devices by their types."""
    rows = probe.qmp("qom-list", path="/machine/peripheral")
    return {probe.get(row["name"], "type"): row["name"] for row in rows if row["name"].startswith("usb-device")}


def _port_names(probe: Probe) -> dict[str, int]:
    """The numbers of ports on the virtio-serial controller by the names the guest sees."""
    rows = probe.qmp("qom-list", path="/machine/peripheral")
    ports = [row["name"] for row in rows if row["name"].startswith("virtio-port-")]
    return {probe.get(name, "name"): probe.get(name, "nr") for name in ports}


EFFECTS = [
    Effect(given={"params": {"rng": False}}, shows={"params.rng": (_there("rng0"), False)}),
    Effect(
        given={"params": {"rng_source": "urandom", "rng_rate": 4321}},
        shows={
            "params.rng_source": (lambda probe: probe.descriptors("/dev/urandom"), 1),
            "params.rng_rate": (
                lambda probe: (probe.get("rng0", "max-bytes"), probe.get("rng0", "period")),
                (4321, 1000),
            ),
        },
    ),
    Effect(
        given={"params": {"rng_source": "hwrng"}},
        shows={"params.rng_source": (lambda probe: probe.descriptors("/dev/hwrng"), 1)},
        needs=("hwrng",),
    ),
    *(
        Effect(given={"params": {"watchdog": kind}}, shows={"params.watchdog": (type_of("watchdog0"), kind)})
        for kind in ("i6300esb", "ib700")
    ),
    Effect(
        # Newer versions of the machine do that by themselves.
        given={"params": {"machine": "pc-q35-7.2", "watchdog": "itco"}},
        base={"params": {"machine": "pc-q35-7.2"}},
        shows={"params.watchdog": (_reboots, True)},
    ),
    Effect(
        given={"params": {"guest_agent": False}},
        shows={"params.guest_agent": (_channels, [])},
    ),
    Effect(given={"params": {"tpm": "tis"}}, shows={"params.tpm": (_tpm, ["tpm-tis"])}, needs=("swtpm",)),
    Effect(
        given={"params": {"machine": "q35", "tpm": "crb"}}, shows={"params.tpm": (_tpm, ["tpm-crb"])}, needs=("swtpm",)
    ),
    _card("std", "VGA"),
    _card("cirrus", "cirrus-vga"),
    _card("vmware", "vmware-svga"),
    _card("bochs", "bochs-display"),
    _card("ramfb", "ramfb"),
    _card("virtio-gpu", "virtio-gpu-pci", "virtio-gpu"),
    _card("virtio", "virtio-vga", "virtio-gpu"),
    _card("qxl", "qxl-vga", "qxl"),
    Effect(
        given={"params": {"pointer": "tablet"}},
        shows={
            "params.pointer": (
                lambda probe: "QEMU HID Tablet" in [row["name"] for row in probe.qmp("query-mice")],
                True,
            )
        },
    ),
    Effect(given={"params": {"pointer": "mouse"}}, shows={"params.pointer": (type_of("pointer0"), "usb-mouse")}),
    *(
        Effect(
            given={"params": {"usb_controller": kind, "pointer": "tablet"}},
            base={"params": {"usb_controller": "none"}},
            shows={"params.usb_controller": (type_of("usb0"), device)},
        )
        for kind, device in (("xhci", "qemu-xhci"), ("ehci", "usb-ehci"), ("uhci", "piix3-usb-uhci"))
    ),
    Effect(
        given={
            "params": {
                "usb": [
                    {"type": "keyboard"},
                    {"type": "storage", "path": File("stick.img", b"\x3c" * 8192)},
                    {"type": "ccid"},
                ]
            }
        },
        base={"params": {"usb": [{"type": "mouse"}]}},
        shows={
            "params.usb": (lambda probe: [probe.bus(ident) for ident in _usb(probe).values()], ["usb0.0"] * 3),
            "params.usb[].type": (lambda probe: set(_usb(probe)), {"usb-kbd", "usb-storage", "usb-ccid"}),
            "params.usb[].path": (lambda probe: set(probe.content(_usb(probe)["usb-storage"])), {0x3C}),
        },
    ),
    _sound("hda", "ich9-intel-hda"),
    _sound("ich6", "intel-hda"),
    _sound("ac97", "AC97"),
    _sound("es1370", "ES1370"),
    _sound("sb16", "sb16"),
    _sound("usb", "usb-audio"),
    Effect(
        given={"params": {"virtio_ports": [{"name": "one"}, {"name": "two", "console": True}]}},
        base={"params": {"virtio_ports": [{"name": "one", "console": True}]}},
        shows={
            "params.virtio_ports": (
                lambda probe: {
                    row["label"] for row in probe.qmp("query-chardev") if row["label"].startswith("virtio-port")
                },
                {"virtio-port-one", "virtio-port-two"},
            ),
            "params.virtio_ports[].name": (_port_names, {"one": 8, "two": 9}),
            "params.virtio_ports[].console": (type_of("virtio-port-one"), "virtserialport"),
        },
    ),
    attrs.evolve(_sound("virtio", "virtio-sound-pci"), needs=("qemu-10",)),
    Effect(
        given={"params": {"sound": "ac97", "sound_backend": "alsa"}},
        base={"params": {"sound": "ac97"}},
        shows={"params.sound_backend": (lambda probe: "audio-alsa.so" in probe.proc("maps"), True)},
        needs=("alsa",),
    ),
    Effect(
        given={"params": {"serial_ports": 2}},
        shows={
            "params.serial_ports": (
                lambda probe: [
                    (_there(f"com{index + 1}")(probe), _chardev(f"serial{index}")(probe)) for index in (1, 2)
                ],
                [(True, True)] * 2,
            )
        },
    ),
    Effect(
        given={"params": {"shares": [{"tag": "outbox", "path": Folder("outbox"), "queue_size": 256}]}},
        base={"params": {"shares": [{"tag": "inbox", "path": Folder("outbox")}]}},
        shows={
            "params.shares[].tag": (of("share0", "tag"), "outbox"),
            "params.shares[].queue_size": (of("share0", "queue-size"), 256),
        },
        needs=("virtiofsd", "root"),
    ),
]


@pytest.mark.parametrize("effect", rows(EFFECTS))
def test_it_takes_effect(prove: Callable[[Effect], None], effect: Effect) -> None:
    """QEMU or the kernel says that the value holds, and that another one holds without it."""
    prove(effect)


def test_sound_goes_into_the_instance_directory(begin: Any) -> None:
    """A sound card on a file writes it into the instance's directory, and not where QEMU happens to stand."""
    with begin({"params": {"sound": "ac97", "sound_backend": "wav"}}) as probe:
        assert (probe.directory / "sound.wav").exists()


def _type(path: Path, keysym: int) -> None:
    """Press a key in a VNC client, and wait until the server has done with it (RFC 6143)."""
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as server:
        client.settimeout(PATIENCE)
        directory = os.open(path.parent, os.O_PATH)
        try:
            client.connect(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
        server.read(12)
        client.sendall(b"RFB 003.008\n")
        assert 1 in server.read(server.read(1)[0])
        client.sendall(b"\x01")
        assert server.read(4) == bytes(4)
        client.sendall(b"\x01")
        width, height = struct.unpack(">HH", server.read(4))
        server.read(16)
        server.read(struct.unpack(">I", server.read(4))[0])
        for down in (1, 0):
            client.sendall(struct.pack(">BBxxI", 4, down, keysym))
        # Messages are answered in order: with the picture, the keys have been seen.
        client.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
        assert server.read(1) == b"\0"


@proves("params.keymap")
@pytest.mark.parametrize(("keymap", "key"), [(None, "y"), ("de", "z")])
def test_keymap(begin: Any, host: Any, keymap: str | None, key: str) -> None:
    """What a German types as Y is where others have Z: QEMU turns it into that key."""
    params = {"extra_args": "-trace input_event_key_qcode", **({"keymap": keymap} if keymap else {})}
    with begin({"consoles": ["vnc"], "params": params}) as probe:
        host.driver.resume_instance("web1")
        _type(probe.directory / "display" / "vnc", ord("y"))
        traced = (probe.directory / "stderr").read_text()
        assert set(re.findall(r"key qcode (\w+)", traced)) == {key}
