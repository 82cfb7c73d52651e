"""Removable media take effect: what is in the drives, and on which bus they are."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kvm_effect import Effect, File, Probe, needs, proves, rows

pytestmark = pytest.mark.qemu

_IMAGE = b"\xc3" * 4096
_FLOPPY = File("floppy.img", size=1_474_560)


def _content(device: str) -> Callable[[Probe], set[int]]:
    """The different bytes that there are on a medium."""
    return lambda probe: set(probe.content(probe.drive(device)["inserted"]["node-name"]))


def _place(probe: Probe) -> tuple[str, str]:
    return str(probe.get("cdrom0", "type")), probe.bus("cdrom0")


def _on_bus(bus: str, place: tuple[str, str]) -> Effect:
    drive = {"path": File("cd.iso")}
    return Effect(
        given={"params": {"cdroms": [{**drive, "bus": bus}]}},
        base={"params": {"cdroms": [drive]}},
        shows={"params.cdroms[].bus": (_place, place)},
    )


EFFECTS = [
    Effect(
        given={"params": {"cdroms": [{"path": File("cd.iso", _IMAGE)}, {}]}},
        base={"params": {"cdroms": [{}]}},
        shows={
            "params.cdroms[].path": (_content("cdrom0"), {0xC3}),
            # The second drive is there, and empty.
            "params.cdroms": (lambda probe: "inserted" in probe.drive("cdrom1"), False),
        },
    ),
    _on_bus("sata", ("ide-cd", "sata0.0")),
    _on_bus("scsi", ("scsi-cd", "scsi0.0")),
    _on_bus("virtio-blk", ("virtio-blk-pci", "pci.0")),
    *(
        Effect(
            given={"params": {"machine": machine, "floppy": _FLOPPY}},
            base={"params": {"machine": machine}},
            shows={
                "params.floppy": (lambda probe: probe.drive("floppy0")["inserted"]["image"]["virtual-size"], 1_474_560)
            },
        )
        for machine in ("pc", "q35")
    ),
]


@pytest.mark.parametrize("effect", rows(EFFECTS))
def test_it_takes_effect(prove: Callable[[Effect], None], effect: Effect) -> None:
    """QEMU says that the value holds, and that another one holds without it."""
    prove(effect)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves one image, in parts as QEMU asks for them."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._head(200, len(_IMAGE))

    def do_GET(self) -> None:
        first, last = 0, len(_IMAGE) - 1
        wanted = self.headers["Range"]
        if wanted:
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high), last)
        self._head(206 if wanted else 200, last - first + 1)
        self.wfile.write(_IMAGE[first : last + 1])

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a web server that has one image."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving.server_address[1]
        serving.shutdown()
        thread.join()


_BLOCK_CURL = needs("block-curl")


@pytest.mark.skipif(bool(_BLOCK_CURL), reason="qemu-block-extra is not installed")
@proves("params.cdroms[].url")
def test_a_medium_from_the_network(begin: Any, server: int) -> None:
    """A drive reads its image from a web server, and is another node than one that reads a file."""
    given = {"params": {"cdroms": [{"url": f"http://127.0.0.1:{server}/cd.iso"}]}}
    with begin(given) as probe:
        assert probe.drive("cdrom0")["inserted"]["ro"] is True
        assert _content("cdrom0")(probe) == {0xC3}
