"""``hv console --web``: the screen of an instance in a browser of this host, by noVNC over QEMU's own websocket.

A small server on loopback gives out a page, the files of noVNC, and, once, for a ticket, where to connect and with
which password. The ticket stands behind the ``#`` of the address, which browsers send to nobody.
"""

from __future__ import annotations

import contextlib
import hmac
import http.server
import ipaddress
import json
import os
import secrets
import select
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from hvcore.driver import Driver
from hvcore.errors import HostError, HypervisorError, UnsupportedOperation
from hvcore.model.console import Console

NOVNC = "/usr/share/novnc"
"""Where distributions put it."""

PASSWORD_SECONDS = 30.0
"""How long a browser has to connect, once it has the password; a connection that stands stays."""

_TYPES = {
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_TICKET_LIMIT = 256


def serve(driver: Driver, console: Console, folder: str, ended: int | None) -> None:
    """Serve the page until the instance ends or somebody interrupts.

    Args:
        driver: sets the password.
        console: of type ``vnc``.
        folder: where noVNC is.
        ended: a descriptor that becomes readable when the instance's process has ended, if there is one.

    Raises:
        UnsupportedOperation: the console has no websocket, or no password; says what to set.
        HostError: noVNC is not there.
    """
    _check(console, folder)
    with _server(driver, console, folder) as server:
        click.echo(f"http://127.0.0.1:{server.server_port}/#{server.ticket}")
        click.echo("Open it in a browser of this host; it works once. Ctrl-C ends.", err=True)
        with contextlib.suppress(KeyboardInterrupt):
            select.select([] if ended is None else [ended], [], [])


def _check(console: Console, folder: str) -> None:
    if console.websocket is None or console.address is None:
        raise UnsupportedOperation(
            f"its {console.kind} console takes no browsers",
            instance=console.instance,
            hint="set params.vnc.bind_address, port, websocket and password_file at its next start",
        )
    if console.authentication != "password":
        raise UnsupportedOperation(
            "its vnc console has no password, so a browser cannot be let in for once",
            instance=console.instance,
            hint="set params.vnc.password_file at its next start",
        )
    if not os.path.isfile(os.path.join(folder, "core/rfb.js")):
        raise HostError(
            f"noVNC is not in {folder}", code="novnc-missing", hint="install it: apt-get install novnc, or --novnc PATH"
        )


@contextlib.contextmanager
def _server(driver: Driver, console: Console, folder: str) -> Iterator[PageServer]:
    server = PageServer(folder, lambda: _let_in(driver, console))
    thread = threading.Thread(target=server.serve_forever, name="hv web console")
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _let_in(driver: Driver, console: Console) -> dict[str, str]:
    """Give the console a password that soon expires, and say how a browser gets in."""
    # Eight characters are all that VNC looks at.
    password = secrets.token_urlsafe(6)
    driver.set_console_password(console.instance, console.kind, password, expires=PASSWORD_SECONDS)
    return {
        "title": f"{console.instance}",
        "url": f"{'wss' if console.tls else 'ws'}://{_host(console)}:{console.websocket}/",
        "password": password,
    }


def _host(console: Console) -> str:
    address = console.address or ""
    return f"[{address}]" if ipaddress.ip_address(address.partition("%")[0]).version == 6 else address


class PageServer(http.server.ThreadingHTTPServer):
    """Serves the page on a port of loopback that the kernel chooses.

    Args:
        folder: where noVNC is; nothing outside of it is served.
        let_in: called for the ticket, once; returns what the page needs.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, folder: str, let_in: Callable[[], dict[str, str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ticket = secrets.token_urlsafe(24)
        self._folder = os.path.realpath(folder)
        self._let_in = let_in
        self._used = False
        self._turn = threading.Lock()

    @property
    def host(self) -> str:
        """What requests have to be addressed to: a name that points here may be somebody else's."""
        return f"127.0.0.1:{self.server_port}"

    def redeem(self, ticket: bytes) -> tuple[int, bytes, str]:
        """What the ticket is good for: status, body and type."""
        with self._turn:
            if not hmac.compare_digest(ticket, self.ticket.encode()):
                return 403, b"This address lets nobody in. Run hv console --web again.", "text/plain"
            if self._used:
                return 403, b"This address has been used. Run hv console --web again.", "text/plain"
            try:
                answer = self._let_in()
            except HypervisorError as error:
                return 502, f"The console cannot be opened: {error.message}".encode(), "text/plain; charset=utf-8"
            self._used = True
            return 200, json.dumps(answer).encode(), "application/json"

    def file(self, path: str) -> bytes | None:
        """The content of a file of noVNC; ``None`` for everything that is none."""
        if "\0" in path or "\\" in path:
            return None
        real = os.path.realpath(os.path.join(self._folder, path.lstrip("/")))
        if os.path.commonpath([real, self._folder]) != self._folder or not os.path.isfile(real):
            return None
        try:
            return Path(real).read_bytes()
        except OSError:
            return None


class _Handler(http.server.BaseHTTPRequestHandler):
    server: PageServer
    # A client that says nothing must not hold a thread for ever.
    timeout = 30

    def do_GET(self) -> None:
        """The page, its program, and files of noVNC."""
        if not self._addressed():
            return
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if path == "/":
            self._answer(200, _own("web_console.html"), _TYPES[".html"])
        elif path == "/page.js":
            self._answer(200, _own("web_console.js"), _TYPES[".js"])
        else:
            kind = _TYPES.get(os.path.splitext(path)[1])
            found = self.server.file(path.removeprefix("/novnc/")) if path.startswith("/novnc/") and kind else None
            if found is None or kind is None:
                self._answer(404, b"There is no such file.", "text/plain")
            else:
                self._answer(200, found, kind)

    def do_POST(self) -> None:
        """The ticket."""
        if not self._addressed():
            return
        length = self.headers.get("Content-Length", "")
        own = self.headers.get("Origin") in (None, f"http://{self.server.host}")
        if self.path != "/ticket" or not own or not length.isdecimal() or int(length) > _TICKET_LIMIT:
            self._answer(403, b"This is not how it works.", "text/plain")
            return
        self._answer(*self.server.redeem(self.rfile.read(int(length))))

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def _addressed(self) -> bool:
        if self.headers.get_all("Host") == [self.server.host]:
            return True
        self._answer(403, b"This server has another address.", "text/plain")
        return False

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data: blob:; "
            "style-src 'self' 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _own(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()
