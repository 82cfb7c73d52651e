"""A small certificate authority: what it makes is taken by others' programs, and nothing is overwritten."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore.certificates import make_certificates

FILES = ["ca-cert.pem", "client-cert.pem", "client-key.pem", "server-cert.pem", "server-key.pem"]


def handshake(server: Path, client: Path, name: str) -> tuple[Any, Any]:
    """A TLS connection between two hosts: what each learns of the other's certificate, or its error."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.verify_mode = ssl.CERT_REQUIRED
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, place, kind in ((serving, server, "server"), (asking, client, "client")):
        # What QEMU does too: no extension may be missing or wrong.
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_cert_chain(place / f"{kind}-cert.pem", place / f"{kind}-key.pem")
        context.load_verify_locations(place / "ca-cert.pem")
    here, there = socket.socketpair()
    found: list[Any] = [None, None]

    def wrap(index: int, context: ssl.SSLContext, end: socket.socket, **given: Any) -> None:
        end.settimeout(60)
        try:
            with context.wrap_socket(end, **given) as wrapped:
                wrapped.write(b"x")
                wrapped.read(1)
                found[index] = wrapped.getpeercert()
        except OSError as error:
            found[index] = error
        finally:
            end.close()

    thread = threading.Thread(target=wrap, args=(0, serving, here), kwargs={"server_side": True})
    thread.start()
    wrap(1, asking, there, server_hostname=name)
    thread.join()
    return found[0], found[1]


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """An authority with two hosts."""
    make_certificates(str(tmp_path / "pki"), ["a.example", "192.0.2.7"])
    return tmp_path / "pki"


def test_hosts_know_each_other(authority: Path) -> None:
    """Both directions, by name and by address; each sees who the other is."""
    for server, client, name in (("a.example", "192.0.2.7", "a.example"), ("192.0.2.7", "a.example", "192.0.2.7")):
        seen_by_server, seen_by_client = handshake(authority / server, authority / client, name)
        assert seen_by_server["subject"] == ((("commonName", client),),)
        assert seen_by_client["subject"] == ((("commonName", server),),)


def test_strangers_are_refused(authority: Path, tmp_path: Path) -> None:
    """Another authority's certificate, and a host by another name."""
    make_certificates(str(tmp_path / "other"), ["a.example"])
    seen_by_server, _ = handshake(authority / "a.example", tmp_path / "other" / "a.example", "a.example")
    assert isinstance(seen_by_server, ssl.SSLError)
    _, seen_by_client = handshake(authority / "a.example", authority / "192.0.2.7", "b.example")
    assert isinstance(seen_by_client, ssl.SSLCertVerificationError)


def test_a_client_is_no_server(authority: Path) -> None:
    """Each certificate is for its own direction."""
    for kind in ("cert", "key"):
        shutil.copy(authority / f"a.example/client-{kind}.pem", authority / f"a.example/server-{kind}.pem")
    _, seen_by_client = handshake(authority / "a.example", authority / "192.0.2.7", "a.example")
    assert isinstance(seen_by_client, ssl.SSLCertVerificationError)


def test_a_later_host_is_signed_by_the_same_authority(authority: Path) -> None:
    """And what was there stays as it was, byte for byte."""
    before = {path: path.read_bytes() for path in authority.rglob("*.pem")}
    [made] = make_certificates(str(authority), ["c.example"], days=30)
    assert (made.subject, Path(made.directory)) == ("CN=c.example", authority / "c.example")
    assert {path: path.read_bytes() for path in before} == before
    seen_by_server, _ = handshake(authority / "a.example", authority / "c.example", "a.example")
    assert seen_by_server["subject"] == ((("commonName", "c.example"),),)


def test_files_and_their_modes(authority: Path) -> None:
    """QEMU's names; keys and directories are for their owner alone, whatever the umask."""
    before = os.umask(0)
    try:
        make_certificates(str(authority), ["open.example"])
    finally:
        os.umask(before)
    for host in ("a.example", "open.example"):
        assert sorted(path.name for path in (authority / host).iterdir()) == FILES
        assert (authority / host).stat().st_mode & 0o777 == 0o700
    for path in authority.rglob("*.pem"):
        assert path.stat().st_mode & 0o777 == (0o600 if "key" in path.name else 0o644)
    assert (authority / "a.example/ca-cert.pem").read_bytes() == (authority / "ca-cert.pem").read_bytes()


def test_everything_wrong_is_said_at_once_and_nothing_is_made(authority: Path) -> None:
    """Names that are none, twice or there already, and days without end."""
    hosts = ["a.example", "../x", "d.example", "d.example", "ca-key.pem", "x" * 65, "", "-o", "a b"]
    before = sorted(authority.rglob("*"))
    with pytest.raises(hvcore.InvalidParameters) as caught:
        make_certificates(str(authority), hosts, days=10**9)
    assert [f.path for f in caught.value.findings] == [
        *(f"hosts[{index}]" for index in (0, 1, 3, 4, 5, 6, 7, 8)),
        "days",
    ]
    assert sorted(authority.rglob("*")) == before
    with pytest.raises(hvcore.InvalidParameters, match="names no host"):
        make_certificates(str(authority), [])


@pytest.mark.parametrize("damage", ["key missing", "certificate missing", "other key", "no key"])
def test_a_damaged_authority_is_not_replaced(authority: Path, tmp_path: Path, damage: str) -> None:
    """It is said, and no host gets certificates."""
    key = authority / "ca-key.pem"
    if damage == "key missing":
        key.unlink()
    elif damage == "certificate missing":
        (authority / "ca-cert.pem").unlink()
    elif damage == "other key":
        make_certificates(str(tmp_path / "other"), ["a.example"])
        shutil.copy(tmp_path / "other/ca-key.pem", key)
    else:
        key.write_text("no key")
    before = sorted(authority.rglob("*"))
    with pytest.raises(hvcore.InvalidParameters):
        make_certificates(str(authority), ["e.example"])
    assert sorted(authority.rglob("*")) == before


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """The error names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(hvcore.HostError, match="file"):
        make_certificates(str(tmp_path / "file"), ["a.example"])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("kind", ["server", "client"])
def test_openssl_takes_them(authority: Path, kind: str) -> None:
    """Strictly, for the purpose that each has, and for no other."""
    for purpose in ("server", "client"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", f"ssl{purpose}", "-CAfile"]
        paths = [str(authority / "ca-cert.pem"), str(authority / f"a.example/{kind}-cert.pem")]
        done = subprocess.run([*command, *paths], capture_output=True, text=True, timeout=120)
        assert (done.returncode == 0) == (purpose == kind), done.stderr


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And nothing is made."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(hvcore.HostError, match=r"hvcore\[tls\]"):
        make_certificates(str(tmp_path / "pki"), ["a.example"])
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path) -> None:
    """It says what it made, and ends with 2 when it is to overwrite something."""
    command = [sys.executable, "-m", "hvcore.cli", "tls", "init", str(tmp_path / "pki"), "--host", "a.example"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"a.example  {tmp_path}/pki/a.example  CN=a.example" in done.stdout
    assert "PRIVATE" not in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (again.returncode, again.stdout) == (2, "")
    assert "nothing is overwritten" in again.stderr
