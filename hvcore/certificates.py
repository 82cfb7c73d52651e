"""A small certificate authority for migrations: certificates of hosts, in the files that QEMU reads (X.509, PEM).

Each host has a directory of its own with the authority's certificate and, for both directions, a certificate and a key
(QEMU, docs/system/tls.rst). The keys are of curve P-256 and never leave the directory.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from hvcore.errors import HostError, InvalidParameters
from hvcore.findings import Finding, FindingSet
from hvcore.model.names import check_host_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, ExtensionType, Name

AUTHORITY_DAYS = 3650
HOST_DAYS = 365
LONGEST_DAYS = 7300

_AUTHORITY = ("ca-cert.pem", "ca-key.pem")
_LIMIT = 1 << 16
_NAME_LIMIT = 64
"""Longest common name of a certificate (RFC 5280, appendix A.1)."""

_SKEW = datetime.timedelta(hours=1)


@attrs.frozen(kw_only=True)
class HostCertificates:
    """What was made for one host.

    Attributes:
        host: its name.
        directory: absolute path of the directory to be copied there.
        subject: distinguished name in both certificates, as `MigrationTls.authz` takes it.
        expires: the last day on which they are valid.
    """

    host: str
    directory: str
    subject: str
    expires: datetime.date


def make_certificates(directory: str, hosts: Sequence[str], *, days: int = HOST_DAYS) -> tuple[HostCertificates, ...]:
    """Make certificates for hosts, by the authority in a directory; it is made if it is not there.

    Nothing is overwritten: a host that has a directory is refused, and with it all of them.

    Args:
        directory: directory of the authority; below it, one for each host.
        hosts: names or IP addresses by which they are reached.
        days: how long the certificates of the hosts are valid.

    Returns:
        What was made, in the order of ``hosts``.

    Raises:
        InvalidParameters: everything that is wrong with the arguments and with what is there.
        HostError: the library cryptography is not installed, or a file cannot be read or written.
    """
    _require_library()
    place = os.path.abspath(directory)
    findings = [*_check(place, hosts), *_check_days(days)]
    if findings:
        raise InvalidParameters("the certificates cannot be made", FindingSet(findings))
    try:
        os.makedirs(place, mode=0o700, exist_ok=True)
        key, certificate = _authority(place)
        return tuple(_make_host(place, host, key, certificate, days) for host in hosts)
    except OSError as error:
        raise HostError(f"cannot write {error.filename or place}: {error.strerror}") from error


def _require_library() -> None:
    try:
        import cryptography  # noqa: F401 - only whether it is there
    except ImportError:
        raise HostError(
            "the library cryptography is not installed", hint="install with pip install 'hvcore[tls]'"
        ) from None


def _check(place: str, hosts: Sequence[str]) -> Iterator[Finding]:
    if not hosts:
        yield Finding(code="missing-parameter", path="hosts", message="names no host")
    for index, host in enumerate(hosts):
        where = f"hosts[{index}]"
        problem = _check_host(host)
        if problem:
            yield Finding(code="invalid-value", path=where, message=problem)
        elif host in hosts[:index]:
            yield Finding(code="repeated", path=where, message=f"{host} is named twice")
        elif os.path.lexists(os.path.join(place, host)):
            message = f"{os.path.join(place, host)} is there already"
            yield Finding(code="exists", path=where, message=message, hint="move it away; nothing is overwritten")
    there = [name for name in _AUTHORITY if os.path.lexists(os.path.join(place, name))]
    if len(there) == 1:
        missing = next(name for name in _AUTHORITY if name not in there)
        message = f"{place} has {there[0]} and no {missing}"
        yield Finding(code="incomplete", path="directory", message=message, hint="bring it back, or use another one")


def _check_host(host: str) -> str | None:
    if _address(host) is not None:
        return None
    if host in _AUTHORITY:
        return f"{host} is what a file of the authority is called"
    if len(host) > _NAME_LIMIT or ":" in host:
        return f"{host[:60]!r} is no name of at most {_NAME_LIMIT} characters, nor an IP address"
    return check_host_name(host)


def _check_days(days: int) -> Iterator[Finding]:
    if not 1 <= days <= LONGEST_DAYS:
        yield Finding(code="invalid-value", path="days", message=f"{days} is not from 1 to {LONGEST_DAYS}")


def _authority(place: str) -> tuple[EllipticCurvePrivateKey, Certificate]:
    certificate_path, key_path = (os.path.join(place, name) for name in _AUTHORITY)
    if os.path.lexists(key_path):
        return _read_authority(certificate_path, key_path)
    from cryptography import x509

    key = _new_key()
    name = _name("hvcore migration authority")
    usage = _key_usage(certificates=True)
    extensions = ((x509.BasicConstraints(ca=True, path_length=0), True), (usage, True))
    certificate = _signed(name, name, key, key, AUTHORITY_DAYS, extensions)
    # The key last: without it there is no authority, and the certificate alone is reported as incomplete.
    _write(certificate_path, _pem(certificate), 0o644)
    try:
        _write(key_path, _key_pem(key), 0o600)
    except OSError:
        os.unlink(certificate_path)
        raise
    return key, certificate


def _read_authority(certificate_path: str, key_path: str) -> tuple[EllipticCurvePrivateKey, Certificate]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_private_key(_read(key_path), password=None)
        certificate = x509.load_pem_x509_certificate(_read(certificate_path))
    except (ValueError, TypeError) as error:
        raise _unusable(key_path, f"cannot be read: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate.public_key() != key.public_key():
        raise _unusable(key_path, f"is not the key of {certificate_path}")
    if certificate.not_valid_after_utc <= datetime.datetime.now(datetime.UTC):
        raise _unusable(certificate_path, "has expired")
    return key, certificate


def _unusable(path: str, message: str) -> InvalidParameters:
    finding = Finding(code="unusable-authority", path=path, message=message, hint="use another directory")
    return InvalidParameters("the certificates cannot be made", FindingSet([finding]))


def _make_host(
    place: str, host: str, authority: EllipticCurvePrivateKey, certificate: Certificate, days: int
) -> HostCertificates:
    """All files of a host in a directory that appears at once."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    final, making = os.path.join(place, host), os.path.join(place, f".{host}.new")
    address = _address(host)
    alternative = x509.IPAddress(address) if address is not None else x509.DNSName(host)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(making)
    os.mkdir(making, 0o700)
    try:
        _write(os.path.join(making, "ca-cert.pem"), _pem(certificate), 0o644)
        for kind, usage in (("server", ExtendedKeyUsageOID.SERVER_AUTH), ("client", ExtendedKeyUsageOID.CLIENT_AUTH)):
            key = _new_key()
            extensions = (
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (_key_usage(certificates=False), True),
                (x509.ExtendedKeyUsage([usage]), False),
                (x509.SubjectAlternativeName([alternative]), False),
            )
            made = _signed(_name(host), certificate.subject, key, authority, days, extensions, certificate)
            _write(os.path.join(making, f"{kind}-cert.pem"), _pem(made), 0o644)
            _write(os.path.join(making, f"{kind}-key.pem"), _key_pem(key), 0o600)
        os.rename(making, final)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    expires = made.not_valid_after_utc.date()
    return HostCertificates(host=host, directory=final, subject=f"CN={host}", expires=expires)


def _signed(
    subject: Name,
    issuer: Name,
    key: EllipticCurvePrivateKey,
    signer: EllipticCurvePrivateKey,
    days: int,
    extensions: Sequence[tuple[ExtensionType, bool]],
    authority: Certificate | None = None,
) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=days)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Hosts' clocks differ a little.
        .not_valid_before(now - _SKEW)
        .not_valid_after(end if authority is None else min(end, authority.not_valid_after_utc))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer, hashes.SHA256())


def _key_usage(*, certificates: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not certificates,
        content_commitment=False,
        # An EC key enciphers none; but QEMU 10 refuses a certificate whose usage is critical and leaves it out.
        key_encipherment=not certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificates,
        crl_sign=certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "rb") as file:
        return file.read(_LIMIT)


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with open(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(data)
