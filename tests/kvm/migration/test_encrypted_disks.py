"""Encrypted disks that only one host has are encrypted on the other one too, with the secret of that one."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest

import hvcore
from hvcore import Disk, InvalidParameters, MigrationPhase
from hvcore.certificates import make_certificates
from hvcore_kvm.migration import encrypted_image
from hvcore_kvm.migration.encrypted_image import make_encrypted

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

SIZE = 3 << 20
TOKENS = 1024
ROOM = 8 << 20
STALE = b"\xee"
SECRETS = {"source": "bought-in-basel", "destination": "found-in-fribourg"}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret is as quick to try as it is slow otherwise."""
    monkeypatch.setattr("hvcore_kvm.migration.encrypted_image._ITERATION_TIME", 10)


@pytest.fixture
def pair(loop: Any, make_pair: Callable[..., Any]) -> Any:
    """Two hosts that are taken down before the devices."""
    del loop
    return make_pair()


@pytest.fixture
def given(pair: Any) -> dict[str, Any]:
    """A policy with certificates; both hosts have a secret, each its own."""
    make_certificates(str(pair.directory / "tls"), ["127.0.0.1"])
    for side, host in pair.sides().items():
        secret = host.directory / "secret"
        secret.write_text(SECRETS[side])
        secret.chmod(0o600)
    tls = {"directory": str(pair.directory / "tls/127.0.0.1")}
    return {"tls": tls, "max_bandwidth": "1GiB", "copy_disks": "all"}


def _qemu_img(*words: str) -> None:
    for _ in range(5):
        done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, timeout=60, check=False)
        # Where the kernel counts time in coarse steps, it has now and then seen none pass on trying a secret.
        if "Unable to get accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr


def _open(secret: Path, path: Path, kind: str, opened: Path, driver: str = "file") -> subprocess.CompletedProcess[str]:
    """Write down what an image holds."""
    key = {"luks": "key-secret", "qcow2": "encrypt.key-secret"}[kind]
    image = f"driver={kind},{key}=key,file.driver={driver},file.filename={path}"
    words = ("--object", f"secret,id=key,file={secret}", "--image-opts", image, "-O", "raw", str(opened))
    return subprocess.run(["qemu-img", "convert", *words], capture_output=True, text=True, timeout=60, check=False)


@attrs.frozen
class Encrypted:
    """An encrypted image, with the secret of the source.

    Attributes:
        image: the image.
        content: what a guest finds in it.
    """

    image: Path
    content: bytes

    def on(self, host: Any) -> Disk:
        """A disk of a host that is a copy of it."""
        path: Path = host.directory / self.image.name
        shutil.copy(self.image, path)
        params = {"encryption": True, "secret_file": str(host.directory / "secret"), "bus": "ide"}
        return Disk(path=str(path), format=path.suffix[1:], params=params)


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encrypted, Encrypted]:
    """A raw one and a qcow2 one, each with something in it, and the second with nothing in most of it."""
    directory = tmp_path_factory.mktemp("encrypted")
    secret, plain = directory / "secret", directory / "plain"
    secret.write_text(SECRETS["source"])
    made = []
    for name, kind, names in (("a.raw", "luks", ""), ("b.qcow2", "qcow2", "encrypt.")):
        content = bytes(TOKENS) + os.urandom(SIZE - TOKENS) + (bytes(0) if kind == "luks" else bytes(5 * SIZE))
        plain.write_bytes(content)
        options = f"{names}key-secret=key,{names}iter-time=10{'' if kind == 'luks' else ',encrypt.format=luks'}"
        _qemu_img(
            *("convert", "--object", f"secret,id=key,file={secret}", "-f", "raw", "-O", kind, "-o", options),
            *(str(plain), str(directory / name)),
        )
        made.append(Encrypted(directory / name, content))
    return made[0], made[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")
def test_they_are_encrypted_anew(
    pair: Any, elsewhere: Any, given: dict[str, Any], encrypted: tuple[Encrypted, ...], loop: Callable[[bytes], str]
) -> None:
    """In a file and on a device: what the guest sees is the same, what is stored opens by another secret only."""
    there = [pair.destination.directory / image.image.name for image in encrypted]
    there[1].symlink_to(loop(STALE * ROOM))
    given["overwrite_disks"] = True
    console = pair.start(disks=[image.on(pair.source) for image in encrypted])
    pair.write_tokens(console)
    result = hvcore.migrate(pair.source.driver, elsewhere, "web1", given, address="127.0.0.1", interval=0.1)
    assert result.phases[0][0] is MigrationPhase.DISKS
    assert pair.running() == ["destination"]
    token = pair.last_token(pair.destination.attach("web1"))
    assert pair.destination.driver.verify_instance("web1").ok
    pair.destination.driver.stop_instance("web1", force=True)
    assert there[0].stat().st_mode & 0o077 == 0
    for image, path, kind, driver in zip(encrypted, there, ("luks", "qcow2"), ("file", "host_device"), strict=True):
        assert image.content[TOKENS : TOKENS + 512] not in path.read_bytes()
        opened = pair.directory / "opened"
        done = _open(pair.destination.directory / "secret", path, kind, opened, driver)
        assert done.returncode == 0, done.stderr
        found = opened.read_bytes()
        assert found[TOKENS:] == image.content[TOKENS:]
        if kind == "luks":
            assert struct.unpack_from("<I", found)[0] == token > 0
            assert not any(found[512:TOKENS])
        assert "Invalid password" in _open(pair.source.directory / "secret", path, kind, opened, driver).stderr


def test_time_that_was_not_measured_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel counts in coarse steps, QEMU now and then sees no time pass on trying a secret."""
    tried = []

    def wait_jobs(monitor: Any, idents: list[str]) -> None:
        tried.extend(idents)
        if len(tried) < 3:
            raise hvcore.OperationFailed("job encrypt: Unable to get accurate CPU usage")

    monkeypatch.setattr("hvcore_kvm.migration.encrypted_image.wait_jobs", wait_jobs)
    monitor = SimpleNamespace(execute=lambda *_: None)
    encrypted_image._create(cast("Any", monitor), "luks", SIZE)
    assert len(set(tried)) == len(tried) == 3


def test_what_would_be_readable_is_refused(pair: Any, elsewhere: Any, encrypted: tuple[Encrypted, ...]) -> None:
    """Without TLS; and a secret that the destination does not have is missed before anything is made."""
    (pair.source.directory / "secret").write_text(SECRETS["source"])
    pair.start(disks=[encrypted[0].on(pair.source)])
    given = {"tls": False, "copy_disks": "all"}
    with pytest.raises(InvalidParameters) as error:
        hvcore.migrate(pair.source.driver, elsewhere, "web1", given, address="127.0.0.1")
    found = {(finding.code, finding.path) for finding in error.value.findings}
    params = "record.instance.disks[0].params"
    assert found == {("not-possible", f"{params}.encryption"), ("secret-unusable", f"{params}.secret_file")}
    assert not (pair.destination.directory / "a.raw").exists()
    assert pair.destination.files() == set()
    assert pair.running() == ["source"]


def test_one_that_cannot_be_made(tmp_path: Path) -> None:
    """QEMU's own words say why, and not what the secret is; or there was no time, and it takes a second."""
    secret = tmp_path / "secret"
    secret.write_text(SECRETS["source"])
    with (tmp_path / "image").open("w+b") as file:
        with pytest.raises(hvcore.OperationFailed, match="QEMU could not do it: create: .*too large") as error:
            make_encrypted("qemu-system-x86_64", file.fileno(), "luks", 1 << 62, str(secret), hvcore.Deadline.after(60))
        assert SECRETS["source"] not in str(error.value)
        with pytest.raises(hvcore.DeadlineExceeded, match="not made in time"):
            make_encrypted("qemu-system-x86_64", file.fileno(), "luks", SIZE, str(secret), hvcore.Deadline.after(0.5))
