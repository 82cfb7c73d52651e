"""Both sides of a migration show certificates, also where QEMU sees nothing of the host."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest

import hvcore
from hvcore import MigrationPhase, MigrationPolicy, MigrationTls, WrongState, read_migration_policy
from hvcore.guests import FIRMWARE_PATTERN_SUM
from hvcore_kvm.qmp import QmpRefused

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make certificates with"),
]


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


def _authority(place: Path, name: str) -> Path:
    place.mkdir()
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-keyout", f"{place}/ca-key.pem", "-out", f"{place}/ca-cert.pem", "-subj", f"/CN={name}"),
    )
    return place


def _host(authority: Path, place: Path, name: str, alternative: str) -> Path:
    """A directory as QEMU wants it; its keys are for its owner alone."""
    place.mkdir()
    shutil.copy(authority / "ca-cert.pem", place)
    for kind in ("server", "client"):
        request, extensions = place / "request", place / "extensions"
        _openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", f"{place}/{kind}-key.pem", "-out", str(request), "-subj", f"/CN={name}"),
        )
        usage = f"extendedKeyUsage={kind}Auth\nkeyUsage=critical,digitalSignature\n"
        extensions.write_text(f"basicConstraints=CA:FALSE\n{usage}subjectAltName={alternative}\n")
        _openssl(
            *("x509", "-req", "-in", str(request), "-CA", f"{authority}/ca-cert.pem", "-days", "2"),
            *("-CAkey", f"{authority}/ca-key.pem", "-set_serial", str(os.getpid()), "-extfile", str(extensions)),
            *("-out", f"{place}/{kind}-cert.pem"),
        )
        os.chmod(place / f"{kind}-key.pem", 0o600)
        request.unlink()
        extensions.unlink()
    return place


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of two hosts of one authority, and of one that only looks like it."""
    top = tmp_path_factory.mktemp("pki")
    authority, other = _authority(top / "ca", "authority"), _authority(top / "other-ca", "authority")
    return {
        "here": _host(authority, top / "here", "here", "DNS:here.example"),
        "there": _host(authority, top / "there", "there", "IP:127.0.0.1,DNS:there.example"),
        "stranger": _host(other, top / "stranger", "here", "DNS:here.example"),
    }


def _policy(directory: Path, **tls: Any) -> MigrationPolicy:
    more = {key: tls.pop(key) for key in ("multifd", "copy_disks") if key in tls}
    given = {"tls": {"directory": str(directory), **tls}, "max_bandwidth": "1GiB", **more}
    policy, findings = read_migration_policy(given)
    assert findings == []
    return policy


def _begin(pair: Any, source: MigrationPolicy, destination: MigrationPolicy) -> Any:
    info = pair.source.driver.migration_info("web1")
    target = pair.accept(destination, info)
    if source.tls is None:
        target = attrs.evolve(target, tls_hostname=None)
    pair.source.driver.migrate_instance("web1", target, source)
    return info


def _nothing_left(pair: Any) -> None:
    """No copy of a key is on either host, and none is in what QEMU was started with."""
    for host in pair.sides().values():
        assert not [path for path in host.files() if path.endswith(".pem") or "/tls" in path]
        for row in host.driver.list_instances().instances:
            if row.pid is not None:
                assert b"-key.pem" not in Path(f"/proc/{row.pid}/cmdline").read_bytes()


@pytest.mark.parametrize(
    ("model", "tls"),
    [
        ("none", {}),
        ("confined", {}),
        ("confined", {"hostname": "there.example", "authz": "CN=here"}),
        ("confined", {"multifd": {"channels": 2}}),
    ],
    ids=["usual", "confined", "names", "multifd"],
)
def test_it_moves_encrypted(pair: Any, certificates: dict[str, Path], model: str, tls: dict[str, Any]) -> None:
    """With each other's certificates, whoever QEMU runs as; the keys are nowhere afterwards."""
    if model == "confined" and os.geteuid() != 0:
        pytest.skip("needs root")
    pair.start(security_model=model)
    info = _begin(pair, _policy(certificates["here"], **tls), _policy(certificates["there"], **tls))
    _nothing_left(pair)
    pair.until(MigrationPhase.COMPLETED)
    assert pair.ask("source", "query-migrate-parameters")["tls-creds"] == "migration-tls"
    pair.destination.driver.finalize_migration_dst(info, True)
    pair.source.driver.finalize_migration_source("web1", True)
    assert pair.ask("destination", "query-migrate-parameters")["tls-creds"] == ""
    there = pair.destination.attach("web1")
    there.send(b"m")
    there.expect(b"sum=")
    assert int(there.expect(b"\r\n"), 16) == FIRMWARE_PATTERN_SUM
    _nothing_left(pair)


@pytest.mark.parametrize(
    ("source", "here", "there"),
    [
        ("stranger", {}, {}),
        ("here", {"hostname": "elsewhere.example"}, {"hostname": "elsewhere.example"}),
        ("here", {}, {"authz": "CN=somebody"}),
        ("plain", {}, {}),
    ],
    ids=["authority", "hostname", "authz", "plain"],
)
def test_who_cannot_show_the_right_one_is_not_let_in(
    pair: Any, certificates: dict[str, Path], source: str, here: dict[str, Any], there: dict[str, Any]
) -> None:
    """The guest runs on where it is, and nothing arrives."""
    pair.start()
    sending = MigrationPolicy(tls=False) if source == "plain" else _policy(certificates[source], **here)
    info = _begin(pair, sending, _policy(certificates["there"], **there))
    status = pair.until(MigrationPhase.FAILED)
    # Whom the destination does not let in is not told why.
    assert not here or "elsewhere.example" in status.error
    assert pair.running() == ["source"]
    with pytest.raises(WrongState):
        pair.destination.driver.finalize_migration_dst(info, True)
    pair.destination.driver.finalize_migration_dst(info, False)
    pair.source.driver.finalize_migration_source("web1", False)
    assert pair.running() == ["source"]
    assert pair.destination.files() == set()
    _nothing_left(pair)


def test_missing_certificates_are_found_before_anything_is_begun(
    pair: Any, certificates: dict[str, Path], tmp_path: Path
) -> None:
    """Each file that is missing, on the side that lacks it; with what to do."""
    pair.start()
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(certificates["here"] / "ca-cert.pem", half)
    info = pair.source.driver.migration_info("web1")
    with pytest.raises(hvcore.InvalidParameters) as error:
        pair.destination.driver.accept_instance(info, "127.0.0.1", _policy(half))
    assert [finding.path for finding in error.value.findings] == ["policy.tls.directory"] * 2
    assert "server-key.pem" in str(error.value.findings[1])
    target = pair.accept(_policy(certificates["there"]), info)
    with pytest.raises(hvcore.InvalidParameters) as error:
        pair.source.driver.migrate_instance("web1", target, _policy(half))
    assert "client-cert.pem" in str(error.value.findings[0])
    assert pair.running() == ["source"]


def test_what_is_no_certificate_is_said_with_its_directory(
    pair: Any, certificates: dict[str, Path], tmp_path: Path
) -> None:
    """QEMU names the descriptor that it was given."""
    broken = tmp_path / "broken"
    shutil.copytree(certificates["there"], broken)
    (broken / "server-key.pem").write_text("no key")
    pair.start()
    with pytest.raises(hvcore.HypervisorRefused) as caught:
        pair.destination.driver.accept_instance(pair.source.driver.migration_info("web1"), "127.0.0.1", _policy(broken))
    assert str(broken) in str(caught.value)
    assert pair.running() == ["source"]
    _nothing_left(pair)


def test_without_a_word_it_is_encrypted(pair: Any) -> None:
    """No TLS has to be asked for."""
    pair.start()
    assert MigrationPolicy().tls == MigrationTls()
    info = pair.source.driver.migration_info("web1")
    if not os.path.exists(f"{MigrationTls().directory}/server-key.pem"):
        with pytest.raises(hvcore.InvalidParameters):
            pair.destination.driver.accept_instance(info, "127.0.0.1", MigrationPolicy())


@pytest.mark.parametrize("model", ["none", "confined"])
def test_its_disks_are_encrypted_on_their_way(
    pair: Any, elsewhere: Any, certificates: dict[str, Path], model: str
) -> None:
    """By the same certificates; who shows none gets nothing of them, and can write nothing."""
    if model == "confined" and os.geteuid() != 0:
        pytest.skip("needs root")
    disk = pair.source.raw_disk("a.raw", 1 << 20)
    content = os.urandom(1 << 20)
    Path(str(disk.path)).write_bytes(content)
    pair.start(disks=[disk], security_model=model)
    given = {"hostname": "there.example", "authz": "CN=here"}
    here, there = (_policy(certificates[side], copy_disks="all", **given) for side in ("here", "there"))
    info = pair.source.driver.migration_info("web1")
    target = elsewhere.accept_instance(info, "127.0.0.1", there)
    pair.keep("destination")
    url = f"nbd://127.0.0.1:{target.disks_port}/{info.record['instance']['disks'][0]['uuid']}"
    asked = subprocess.run(["qemu-img", "info", url], capture_output=True, text=True, timeout=60)
    assert asked.returncode == 1
    assert "TLS" in asked.stderr
    assert pair.source.driver.migrate_instance("web1", target, here).phase is MigrationPhase.DISKS
    _nothing_left(pair)
    pair.until(MigrationPhase.COMPLETED)
    elsewhere.finalize_migration_dst(info, True)
    pair.source.driver.finalize_migration_source("web1", True)
    assert pair.running() == ["destination"]
    # Nothing uses them any more, and so they are gone.
    for ident in ("migration-tls", "migration-authz"):
        with pytest.raises(QmpRefused):
            pair.ask("destination", "object-del", id=ident)
    pair.destination.driver.stop_instance("web1", force=True)
    assert (pair.destination.directory / "a.raw").read_bytes() == content


@pytest.mark.parametrize(
    ("source", "here", "there"),
    [
        ("stranger", {}, {}),
        ("here", {"hostname": "elsewhere.example"}, {"hostname": "elsewhere.example"}),
        ("here", {}, {"authz": "CN=somebody"}),
    ],
    ids=["authority", "hostname", "authz"],
)
def test_disks_are_not_given_to_anybody_else(
    pair: Any, elsewhere: Any, certificates: dict[str, Path], source: str, here: dict[str, Any], there: dict[str, Any]
) -> None:
    """Nor taken from anybody: the guest runs on where it is, and nothing is left of the attempt."""
    pair.start(disks=[pair.source.raw_disk("a.raw")])
    policies = (_policy(certificates[source], copy_disks="all", **here),)
    policies += (_policy(certificates["there"], copy_disks="all", **there),)
    info = pair.source.driver.migration_info("web1")
    target = elsewhere.accept_instance(info, "127.0.0.1", policies[1])
    with pytest.raises(hvcore.HypervisorRefused):
        pair.source.driver.migrate_instance("web1", target, policies[0])
    assert pair.ask("source", "query-jobs") == []
    assert not pair.source.driver.finalize_migration_source("web1", False).changed
    elsewhere.finalize_migration_dst(info, False)
    assert pair.running() == ["source"]
    assert not (pair.destination.directory / "a.raw").exists()
    assert pair.destination.files() == set()
    _nothing_left(pair)
