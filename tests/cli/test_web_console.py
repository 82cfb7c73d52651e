"""``hv console --web``: who is let in, what is served, and a real browser that shows the guest's picture."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvcore.cli.web_console import NOVNC, PageServer

SOON = 120.0

Hv = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like noVNC's, with a secret beside it and ways to get there."""
    made = tmp_path / "novnc"
    (made / "core").mkdir(parents=True)
    (made / "core" / "rfb.js").write_text("export default 1;")
    (tmp_path / "secret.js").write_text("secret")
    (tmp_path / "novnc-else").mkdir()
    (tmp_path / "novnc-else" / "secret.js").write_text("secret")
    (made / "link.js").symlink_to(tmp_path / "secret.js")
    (made / "up").symlink_to(tmp_path)
    (made / "inner.js").symlink_to("core/rfb.js")
    (made / "core" / "plain").write_text("no type")
    return made


@pytest.fixture
def page(folder: Path) -> Iterator[PageServer]:
    import threading

    server = PageServer(str(folder), lambda: {"password": "sesame"})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _ask(server: PageServer, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=SOON)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": server.host, **headers}.items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(None if body is None else body.encode())
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_files_of_the_folder_are_served_and_no_others(page: PageServer) -> None:
    """No way leads out: not up, not by a link, not by another spelling; links within are fine."""
    assert _ask(page, "GET", "/")[0] == 200
    assert _ask(page, "GET", "/page.js")[0] == 200
    assert _ask(page, "GET", "/novnc/core/rfb.js") == (200, b"export default 1;")
    assert _ask(page, "GET", "/novnc/inner.js") == (200, b"export default 1;")
    for path in (
        "/novnc/../secret.js",
        "/novnc/%2e%2e/secret.js",
        "/novnc/..%2fsecret.js",
        "/novnc/..%5csecret.js",
        "/novnc//../secret.js",
        "/novnc/../novnc-else/secret.js",
        "/novnc/link.js",
        "/novnc/up/secret.js",
        "/novnc/%2fetc/passwd.js",
        "/novnc/core/rfb.js%00.js",
        "/novnc/core/plain",
        "/novnc/core",
        "/novnc/",
        "/secret.js",
        "/web_console.py",
    ):
        assert _ask(page, "GET", path)[0] == 404, path


def test_the_ticket_works_once(page: PageServer) -> None:
    """A wrong one does not use it up; the second use is refused."""
    for wrong in ("", "x", page.ticket[:-1], page.ticket + "x", "\u00e9"):
        assert _ask(page, "POST", "/ticket", wrong)[0] == 403
    assert _ask(page, "POST", "/ticket", page.ticket) == (200, b'{"password": "sesame"}')
    status, words = _ask(page, "POST", "/ticket", page.ticket)
    assert status == 403
    assert b"has been used" in words
    assert b"sesame" not in words


def test_other_names_and_other_pages_are_refused(page: PageServer) -> None:
    """A name that somebody points at this address, and a page of somebody else, get nothing and use nothing up."""
    for host in ("evil.example", f"evil.example:{page.server_port}", "127.0.0.1", f"localhost:{page.server_port}", ""):
        assert _ask(page, "GET", "/", Host=host)[0] == 403
        assert _ask(page, "POST", "/ticket", page.ticket, Host=host)[0] == 403
    for origin in ("http://evil.example", "null"):
        assert _ask(page, "POST", "/ticket", page.ticket, Origin=origin)[0] == 403
    assert _ask(page, "POST", "/ticket", "x" * 1000)[0] == 403
    assert _ask(page, "POST", "/other", page.ticket)[0] == 403
    assert _ask(page, "GET", "/ticket")[0] == 404
    assert _ask(page, "POST", "/ticket", page.ticket, Origin=f"http://{page.host}")[0] == 200


@pytest.fixture
def with_vnc(instance_file: Path, tmp_path: Path, free_port: Callable[[], int]) -> Callable[..., None]:
    """Gives the instance a VNC console with a websocket and a password, but for changes."""

    def change(**changes: Any) -> None:
        password = tmp_path / "password"
        password.write_text("sesame\n")
        given = {"bind_address": "127.0.0.1", "port": free_port(), "websocket": free_port()}
        given |= {"password_file": str(password), **changes}
        lines = [f"{name} = {json.dumps(value)}" for name, value in given.items() if value is not None]
        text = instance_file.read_text().replace("[params]", 'consoles = ["serial", "vnc"]\n[params]')
        instance_file.write_text(text + "\n".join(["[params.vnc]", *lines, ""]))

    return change


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"websocket": None}, "params.vnc.bind_address, port, websocket"),
        ({"password_file": None}, "params.vnc.password_file"),
    ],
)
def test_what_is_missing_is_named(
    hv: Hv, instance_file: Path, with_vnc: Callable[..., None], changes: dict[str, Any], hint: str
) -> None:
    """Without a websocket or a password the command says what to set."""
    with_vnc(**changes)
    assert hv("start", instance_file).returncode == 0
    done = hv("console", "web1", "--web")
    assert done.returncode == 5
    assert hint in done.stderr


@pytest.mark.qemu
def test_without_novnc(hv: Hv, instance_file: Path, with_vnc: Callable[..., None], tmp_path: Path) -> None:
    """The package to install is named; an instance without VNC is invalid input."""
    assert hv("start", instance_file).returncode == 0
    assert hv("console", "web1", "--web").returncode == 2
    assert hv("stop", "web1", "--force").returncode == 0
    with_vnc()
    assert hv("start", instance_file).returncode == 0
    done = hv("console", "web1", "--web", "--novnc", tmp_path)
    assert done.returncode != 0
    assert "apt-get install novnc" in done.stderr


class Browser:
    """A headless Chromium, driven through its pipe (Chrome DevTools Protocol)."""

    def __init__(self, directory: Path) -> None:
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
        flags += ["--disable-background-networking", f"--user-data-dir={directory}", "--remote-debugging-pipe"]
        script = f'exec "$@" 3<&{read} 4>&{write} {read}<&- {write}>&-'
        with (directory.parent / "browser.log").open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "browser", "chromium", *flags, "about:blank"],
                pass_fds=[read, write],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        os.close(read)
        os.close(write)
        self._unread = b""
        self._number = 0

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Give a command, and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(self._to, json.dumps({**message, **({"sessionId": session} if session else {})}).encode() + b"\0")
        while True:
            while b"\0" not in self._unread:
                data = os.read(self._from, 1 << 20)
                assert data, "the browser has ended"
                self._unread += data
            line, _, self._unread = self._unread.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, url: str) -> str:
        """Open a page, and return its session."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = str(self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        # Answered once the page has taken the place of the one before.
        self.call("Page.navigate", session, url=url)
        return session

    def evaluate(self, session: str, program: str) -> Any:
        """The value of an expression of the page; a promise is waited for."""
        given = {"expression": program, "awaitPromise": True, "returnByValue": True}
        result = self.call("Runtime.evaluate", session, **given)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def close(self) -> None:
        """End it."""
        os.close(self._to)
        os.close(self._from)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed")
    if not os.path.exists(f"{NOVNC}/core/rfb.js"):
        pytest.skip("novnc is not installed")
    (tmp_path / "profile").mkdir()
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


_STATE = """new Promise((resolve) => {
    const look = () => {
        const state = document.body && document.body.dataset.state;
        if (state && state !== "waiting") { resolve(state); } else { setTimeout(look, 20); }
    };
    look();
})"""

_COMPARED = """(async () => {
    const image = new Image();
    image.src = "data:image/png;base64,%s";
    await image.decode();
    const canvas = document.querySelector("#screen canvas");
    const read = (source, width, height) => {
        const copy = document.createElement("canvas");
        copy.width = width;
        copy.height = height;
        copy.getContext("2d").drawImage(source, 0, 0);
        return copy.getContext("2d").getImageData(0, 0, width, height).data;
    };
    const compare = () => {
        if (canvas.width !== image.width || canvas.height !== image.height) { return null; }
        const [shown, wanted] = [read(canvas, image.width, image.height), read(image, image.width, image.height)];
        let [bright, different] = [0, 0];
        for (let i = 0; i < shown.length; i += 4) {
            bright += shown[i] + shown[i + 1] + shown[i + 2] > 0;
            different += [0, 1, 2].some((c) => Math.abs(shown[i + c] - wanted[i + c]) > 8);
        }
        return { width: canvas.width, height: canvas.height, bright, different };
    };
    for (let i = 0; i < 500; i++) {
        const found = compare();
        if (found && found.bright) { return found; }
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return compare();
})()"""


@pytest.mark.qemu
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("heeds_signals")
def test_a_browser_shows_the_picture(
    hv: Hv,
    environment: dict[str, str],
    instance_file: Path,
    with_vnc: Callable[..., None],
    tmp_path: Path,
    browser: Browser,
) -> None:
    """The address opens the guest's screen once, and the page forgets its ticket at once."""
    with_vnc()
    assert hv("start", instance_file).returncode == 0
    picture = tmp_path / "picture.png"
    assert hv("screenshot", "web1", "-o", picture).returncode == 0
    command = [sys.executable, "-m", "hvcore.cli", "console", "web1", "--web"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment, text=True) as served:
        try:
            assert served.stdout is not None
            assert served.stderr is not None
            url = served.stdout.readline().strip()
            assert urllib.parse.urlsplit(url).hostname == "127.0.0.1"
            page = browser.open(url)
            assert browser.evaluate(page, _STATE) == "connected"
            assert browser.evaluate(page, "location.href") == url.partition("#")[0]
            found = browser.evaluate(page, _COMPARED % base64.b64encode(picture.read_bytes()).decode())
            assert found["bright"] > 100
            assert found["different"] < found["width"] * found["height"] // 100
            again = browser.open(url)
            assert browser.evaluate(again, _STATE) == "refused"
            assert "has been used" in browser.evaluate(again, "document.body.textContent")
            served.send_signal(signal.SIGINT)
            assert served.wait(SOON) == 0
        finally:
            if served.poll() is None:
                served.kill()
