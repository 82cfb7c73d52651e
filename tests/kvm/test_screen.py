"""The display of a running instance: its picture, and who may look on."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

import hvcore
from hvcore import Deadline
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu


def _png(data: bytes) -> tuple[int, int]:
    """Size of a picture; every part of the file is whole."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    at, size, kinds = 8, (0, 0), []
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        assert checksum == zlib.crc32(kind + body)
        kinds.append(kind)
        if kind == b"IHDR":
            size = struct.unpack_from(">II", body)
        at += length + 12
    assert kinds[-1] == b"IEND"
    return size


@pytest.mark.parametrize("confined", [False, True], ids=["none", "user"])
def test_a_picture(host: Any, confined: bool) -> None:
    """It is a whole PNG, also of a QEMU that may open nothing; nothing is left of taking it."""
    if confined and os.geteuid() != 0:
        pytest.skip("only root can run QEMU as somebody else")
    params: dict[str, Any] = {"display_device": "std", "firmware_image": None}
    more = {"security_model": "user"} if confined else {}
    if confined:
        params["user"] = {"name": "nobody"}
    host.driver.start_instance(host.instance(params=params, **more))
    for _ in range(2):
        picture = host.driver.screenshot("web1")
        assert picture.media_type == "image/png"
        width, height = _png(picture.data)
        assert width >= 640
        assert height >= 400
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/query"), Deadline.after(20)) as client:
        sets = client.execute("query-fdsets", deadline=Deadline.after(20))
    assert all("screenshot" not in str(row) for row in sets)


def test_without_a_display_there_is_no_picture(host: Any) -> None:
    """QEMU's own words say so; without an instance there is none either."""
    host.driver.start_instance(host.instance())
    with pytest.raises(hvcore.HypervisorRefused, match="no console to take a screendump from"):
        host.driver.screenshot("web1")
    host.driver.stop_instance("web1", force=True)
    with pytest.raises(hvcore.NotRunning):
        host.driver.screenshot("web1")


@pytest.fixture
def guarded(host: Any, free_port: Callable[[], int]) -> Any:
    """An instance whose VNC console asks for a password."""
    secret = host.directory / "password"
    secret.write_text("first\n")
    vnc = {"bind_address": "127.0.0.1", "port": free_port(), "password_file": str(secret)}
    host.driver.start_instance(host.instance(consoles=["vnc"], params={"vnc": vnc}), paused=True)
    return host


def test_a_password_with_an_end(guarded: Any) -> None:
    """What it expires at is said; locked, it has no end."""
    before = hvcore.PasswordResult(kind="vnc")
    assert guarded.driver.set_console_password("web1", "vnc", "second") == before
    limited = guarded.driver.set_console_password("web1", "vnc", "third", expires=60)
    assert limited.expires is not None
    assert guarded.driver.set_console_password("web1", "vnc", "") == before
    for name in guarded.files():
        path = guarded.directory / name
        if path.is_file():
            content = path.read_bytes()
            assert b"second" not in content, name
            assert b"third" not in content, name


def test_who_cannot_have_a_password(guarded: Any) -> None:
    """A console that is not offered, one that knows none, and one that was started without."""
    with pytest.raises(hvcore.InvalidParameters):
        guarded.driver.set_console_password("web1", "spice", "x")
    guarded.driver.stop_instance("web1", force=True)
    guarded.driver.start_instance(guarded.instance(consoles=["serial", "vnc"]), paused=True)
    with pytest.raises(hvcore.InvalidParameters, match="knows no passwords"):
        guarded.driver.set_console_password("web1", "serial", "x")
    with pytest.raises(hvcore.HypervisorRefused) as caught:
        guarded.driver.set_console_password("web1", "vnc", "x")
    assert "password_file" in str(caught.value.hint)
