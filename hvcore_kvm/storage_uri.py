"""URIs of images on storage servers, read into QEMU's typed block options; no URI text reaches QEMU."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

Options = dict[str, Any]

_RBD = re.compile(
    r"(?P<pool>[^/@:,]+)/(?:(?P<namespace>[^/@:,]+)/)?(?P<image>[^/@:,]+)(?:@(?P<snapshot>[^/@:,]+))?(?P<rest>(?::.*)?)"
)
_GLUSTER_PORT = 24007


def parse_uri(uri: str) -> Options:
    """The options of QEMU's block driver for a URI.

    Args:
        uri: ``nbd://HOST[:PORT]/EXPORT``, ``nbd+unix:///EXPORT?socket=PATH``, ``rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT]``
            with ``:id=USER`` and ``:conf=PATH``, ``gluster[+tcp]://HOST[:PORT]/VOLUME/PATH``,
            ``gluster+unix:///VOLUME/PATH?socket=PATH``, ``iscsi://HOST[:PORT]/TARGET/LUN``, ``nfs://HOST/PATH``,
            ``http``, ``https``, ``ftp`` or ``ftps``.

    Returns:
        The options, ``driver`` first.

    Raises:
        ValueError: it is not such a URI; says why.
    """
    scheme = uri.partition(":")[0]
    reader = _READERS.get(scheme)
    if reader is None:
        raise ValueError(f"{scheme[:20]!r} is none of {', '.join(_READERS)}")
    if any(ord(c) <= 32 or ord(c) == 127 for c in uri):
        raise ValueError("holds a blank or control character; write it as %20 and the like")
    return reader(uri)


def _split(uri: str, *, host: bool, query: tuple[str, ...] = ()) -> tuple[SplitResult, dict[str, str]]:
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is no URI: {str(error)[:60]}") from None
    if port == 0:
        raise ValueError("port 0 is no port")
    if parts.password is not None:
        raise ValueError("holds a password, which would be seen by everybody; use a file for secrets")
    if host and not parts.hostname:
        raise ValueError("names no host")
    if not host and parts.netloc:
        raise ValueError("names a host, and it is for a socket on this one: write three slashes")
    given = parse_qs(parts.query, keep_blank_values=True)
    for key, values in given.items():
        if key not in query or len(values) != 1:
            raise ValueError(f"has the option {key[:20]!r}, which is unknown or given twice")
    if parts.fragment:
        raise ValueError("has a fragment (#)")
    return parts, {key: values[0] for key, values in given.items()}


def _socket(options: Mapping[str, str]) -> str:
    path = options.get("socket", "")
    if not path.startswith("/") or "\0" in path:
        raise ValueError("needs ?socket= with the absolute path of a UNIX socket")
    return path


def _nbd(uri: str) -> Options:
    unix = uri.startswith("nbd+unix:")
    parts, query = _split(uri, host=not unix, query=("socket",) if unix else ())
    server: Options
    if unix:
        server = {"type": "unix", "path": _socket(query)}
    else:
        server = {"type": "inet", "host": parts.hostname, "port": str(parts.port or 10809)}
    export = unquote(parts.path.removeprefix("/"))
    return {"driver": "nbd", "server": server, **({"export": export} if export else {})}


def _rbd(uri: str) -> Options:
    found = _RBD.fullmatch(uri.removeprefix("rbd:"))
    if found is None:
        raise ValueError("is not rbd:POOL/IMAGE")
    options: Options = {"driver": "rbd", "pool": found["pool"]}
    if found["namespace"]:
        options["namespace"] = found["namespace"]
    options["image"] = found["image"]
    if found["snapshot"]:
        options["snapshot"] = found["snapshot"]
    for part in found["rest"].split(":")[1:]:
        key, _, value = part.partition("=")
        name = {"id": "user", "conf": "conf"}.get(key)
        if name is None or not value or name in options:
            raise ValueError(f"has the option {key[:20]!r} wrong; id= and conf= are known, each once")
        options[name] = value
    return options


def _gluster(uri: str) -> Options:
    unix = uri.startswith("gluster+unix:")
    parts, query = _split(uri, host=not unix, query=("socket",) if unix else ())
    volume, _, path = unquote(parts.path.removeprefix("/")).partition("/")
    if not volume or not path:
        raise ValueError("is not gluster://HOST/VOLUME/PATH")
    server: Options
    if unix:
        server = {"type": "unix", "path": _socket(query)}
    else:
        server = {"type": "inet", "host": parts.hostname, "port": str(parts.port or _GLUSTER_PORT)}
    return {"driver": "gluster", "volume": volume, "path": path, "server": [server]}


def _iscsi(uri: str) -> Options:
    parts, _ = _split(uri, host=True)
    target, _, lun = unquote(parts.path.removeprefix("/")).rpartition("/")
    if not target or not lun.isdigit() or len(lun) > 5:
        raise ValueError("is not iscsi://HOST/TARGET/LUN")
    portal = _host(parts) + f":{parts.port or 3260}"
    options: Options = {"driver": "iscsi", "transport": "tcp", "portal": portal, "target": target, "lun": int(lun)}
    return {**options, **({"user": unquote(parts.username)} if parts.username else {})}


def _nfs(uri: str) -> Options:
    parts, _ = _split(uri, host=True)
    path = unquote(parts.path)
    if len(path) < 2 or parts.port is not None:
        raise ValueError("is not nfs://HOST/PATH")
    return {"driver": "nfs", "server": {"type": "inet", "host": parts.hostname}, "path": path}


def _curl(uri: str) -> Options:
    parts = urlsplit(uri)
    _split(uri, host=True, query=tuple(parse_qs(parts.query, keep_blank_values=True)))
    return {"driver": parts.scheme, "url": uri}


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    return f"[{host}]" if ":" in host else host


_READERS: Mapping[str, Callable[[str], Options]] = {
    "nbd": _nbd,
    "nbd+unix": _nbd,
    "rbd": _rbd,
    "gluster": _gluster,
    "gluster+tcp": _gluster,
    "gluster+unix": _gluster,
    "iscsi": _iscsi,
    "nfs": _nfs,
    "http": _curl,
    "https": _curl,
    "ftp": _curl,
    "ftps": _curl,
}

READ_ONLY_DRIVERS = ("http", "https", "ftp", "ftps")
"""Block drivers that only read."""
