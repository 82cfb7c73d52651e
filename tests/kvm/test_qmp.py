"""The monitor client against a scripted peer that misbehaves, and against a real QEMU."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvcore import Deadline
from hvcore_kvm.qmp import (
    QmpClient,
    QmpClosed,
    QmpConnectError,
    QmpProtocolError,
    QmpRefused,
    QmpTimeout,
    Question,
    State,
    ask_many,
)
from hvcore_kvm.qmp.wire import MESSAGE_LIMIT, Decoder

GREETING = {"QMP": {"version": {"qemu": {"major": 9, "minor": 1, "micro": 2}, "package": "p"}, "capabilities": []}}

Script = Callable[["Peer"], None]


class Peer:
    """The other end of a connection: says what it is told to, and hands over what it hears."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._file = connection.makefile("r")

    def say(self, *messages: Any) -> None:
        for message in messages:
            self.socket.sendall((message if isinstance(message, str) else json.dumps(message)).encode() + b"\r\n")

    def hear(self) -> Any:
        return json.loads(self._file.readline())

    def negotiate(self) -> None:
        self.say(GREETING)
        assert self.hear()["execute"] == "qmp_capabilities"
        self.say({"return": {}, "id": 0})

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def dial() -> Iterator[Callable[[Script], QmpClient]]:
    """Connects a client to a scripted peer that runs in a thread."""
    threads: list[threading.Thread] = []
    clients: list[QmpClient] = []

    def start(script: Script) -> QmpClient:
        ours, theirs = socket.socketpair()

        def run() -> None:
            peer = Peer(theirs)
            try:
                script(peer)
            except (BrokenPipeError, ConnectionResetError):
                return  # the client gave up first, as some tests want
            finally:
                peer.close()

        thread = threading.Thread(target=run)
        thread.start()
        threads.append(thread)
        clients.append(QmpClient(ours))
        return clients[-1]

    yield start
    for client in clients:
        client.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def _soon(seconds: float = 30) -> Deadline:
    return Deadline.after(seconds)


def test_negotiation_learns_the_version(dial: Any) -> None:
    """After negotiation the client knows QEMU's version and is ready."""
    client = dial(Peer.negotiate)
    client.negotiate(_soon())
    assert (client.state, client.version, client.package) == (State.READY, (9, 1, 2), "p")


def test_events_may_come_anywhere(dial: Any) -> None:
    """Events before the greeting's answer and between a command and its answer are kept, in order."""

    def script(peer: Peer) -> None:
        peer.say(GREETING, {"event": "A"})
        peer.hear()
        peer.say({"return": {}, "id": 0}, {"event": "B"})
        ident = peer.hear()["id"]
        peer.say({"event": "C"}, {"return": {"status": "running"}, "id": ident}, {"event": "D"})

    client = dial(script)
    client.negotiate(_soon())
    assert client.execute("query-status", deadline=_soon()) == {"status": "running"}
    assert client.wait_event(lambda e: e["event"] == "D", _soon())["event"] == "D"
    assert [event["event"] for event in client.events()] == ["A", "B", "C"]


def test_answers_to_others(dial: Any) -> None:
    """What a client that was killed has asked is answered to the next one, and is not taken for an answer to that."""

    def script(peer: Peer) -> None:
        peer.say(GREETING, {"return": {"status": "old"}, "id": 1})
        peer.hear()
        peer.say({"error": {"class": "GenericError", "desc": "old"}, "id": 2}, {"return": {}, "id": 0})
        ident = peer.hear()["id"]
        peer.say({"return": {}, "id": 0}, {"return": {"status": "running"}, "id": ident})

    client = dial(script)
    client.negotiate(_soon())
    assert client.execute("query-status", deadline=_soon()) == {"status": "running"}


def test_a_refusal_keeps_qemus_words(dial: Any) -> None:
    """An error answer is a refusal with class and text, and the connection can be used again."""

    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.say({"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}, "id": peer.hear()["id"]})
        peer.say({"return": 1, "id": peer.hear()["id"]})

    client = dial(script)
    client.negotiate(_soon())
    with pytest.raises(QmpRefused) as caught:
        client.execute("device_del", {"id": "x"}, deadline=_soon())
    assert (caught.value.error_class, caught.value.text) == ("DeviceNotFound", "Device 'x' not found")
    assert client.execute("again", deadline=_soon()) == 1


def test_a_peer_that_does_not_greet(dial: Any) -> None:
    """No greeting in time means that nothing was reached, and nothing was asked."""
    hold = threading.Event()
    client = dial(lambda peer: hold.wait(30) and None)
    with pytest.raises(QmpConnectError):
        client.negotiate(_soon(0.05))
    hold.set()
    with pytest.raises(QmpClosed) as caught:
        client.execute("cont", deadline=_soon())
    assert not caught.value.sent


@pytest.mark.parametrize("greeting", ['{"hello": 1}', '{"QMP": 3}', '{"QMP": {"version": {"qemu": {"major": "x"}}}}'])
def test_what_is_no_monitor_is_told(dial: Any, greeting: str) -> None:
    """A peer that answers something else is no monitor."""
    client = dial(lambda peer: peer.say(greeting))
    with pytest.raises(QmpConnectError):
        client.negotiate(_soon())


def test_no_answer_in_time_leaves_the_outcome_open(dial: Any) -> None:
    """A command without an answer may have happened; the connection is not used again."""
    hold = threading.Event()

    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.hear()
        hold.wait(30)

    client = dial(script)
    client.negotiate(_soon())
    with pytest.raises(QmpTimeout) as caught:
        client.execute("cont", deadline=_soon(0.05))
    assert caught.value.sent
    assert client.state is State.BROKEN
    with pytest.raises(QmpClosed):
        client.execute("stop", deadline=_soon())
    hold.set()


def test_the_end_of_the_connection_after_a_command(dial: Any) -> None:
    """A connection that ends instead of an answer leaves the outcome open."""

    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.hear()

    client = dial(script)
    client.negotiate(_soon())
    with pytest.raises(QmpClosed) as caught:
        client.execute("quit", deadline=_soon())
    assert caught.value.sent


@pytest.mark.parametrize(
    "answer",
    ["rubbish", "[]", "[" * 2000, '{"return": 1, "id": 99}', '{"neither": 1, "id": 1}', '{"id": 1, "error": 3}'],
)
def test_nonsense_is_a_protocol_error(dial: Any, answer: str) -> None:
    """What is not JSON, not an object, or an answer to something else breaks the connection, typed."""

    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.say(answer.replace('"id": 1', f'"id": {peer.hear()["id"]}'))

    client = dial(script)
    client.negotiate(_soon())
    with pytest.raises(QmpProtocolError):
        client.execute("query-status", deadline=_soon())
    assert client.state is State.BROKEN


def test_a_message_without_end_is_cut_off() -> None:
    """A QEMU that its guest has taken over cannot fill our memory."""
    decoder = Decoder()
    with pytest.raises(QmpProtocolError):
        for _ in range(MESSAGE_LIMIT // 65536 + 2):
            decoder.feed(b"x" * 65536)


def test_messages_may_come_in_pieces() -> None:
    """Where the kernel cuts the stream makes no difference."""
    data = b'{"a": 1}\r\n{"b": 2}\r\n'
    for size in range(1, len(data)):
        decoder = Decoder()
        found = []
        for start in range(0, len(data), size):
            decoder.feed(data[start : start + size])
            while (message := decoder.next()) is not None:
                found.append(message)
        assert found == [{"a": 1}, {"b": 2}]


def test_descriptors_travel_with_a_command(dial: Any, tmp_path: Path) -> None:
    """A descriptor sent with a command arrives with its bytes."""
    (tmp_path / "file").write_text("content")
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.negotiate()
        data, fds, _, _ = socket.recv_fds(peer.socket, 4096, 4)
        seen.append(os.read(fds[0], 100))
        for fd in fds:
            os.close(fd)
        peer.say({"return": {}, "id": json.loads(data)["id"]})

    client = dial(script)
    client.negotiate(_soon())
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        client.execute("getfd", {"fdname": "x"}, deadline=_soon(), fds=[fd])
    finally:
        os.close(fd)
    assert seen == [b"content"]


def test_nothing_listens(tmp_path: Path) -> None:
    """A path without a listener is a connect error, not an OSError."""
    with pytest.raises(QmpConnectError):
        QmpClient.connect(str(tmp_path / "nothing"), _soon())
    with pytest.raises(QmpConnectError):
        QmpClient.connect(str(tmp_path / "no" / "directory"), _soon())


def test_one_silent_monitor_does_not_delay_the_others(tmp_path: Path) -> None:
    """Of several monitors asked at once, those that answer are answered for, the silent one times out."""
    listeners = []
    threads = []
    for name in ("good", "silent"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / name))
        listener.listen()
        listeners.append(listener)

    def serve() -> None:
        connection, _ = listeners[0].accept()
        peer = Peer(connection)
        peer.negotiate()
        peer.say({"event": "E"}, {"return": {"status": "running"}, "id": peer.hear()["id"]})
        refused = {"class": "DeviceNotActive", "desc": "No balloon"}
        peer.say({"error": refused, "id": peer.hear()["id"]})
        peer.close()

    threads.append(threading.Thread(target=serve))
    threads[0].start()
    try:
        questions = [Question(key=n, path=str(tmp_path / n)) for n in ("good", "silent", "missing")]
        answers = ask_many(questions, ("query-status", "query-balloon"), _soon(1.0))
    finally:
        threads[0].join(30)
        for listener in listeners:
            listener.close()
    assert answers["good"].results["query-status"] == {"status": "running"}
    assert isinstance(answers["good"].results["query-balloon"], QmpRefused)
    assert isinstance(answers["silent"].error, QmpTimeout)
    assert isinstance(answers["missing"].error, QmpConnectError)


@pytest.mark.qemu
def test_a_real_monitor(host: Any) -> None:
    """A real QEMU greets, answers, refuses in its own words, and sends events."""
    host.start(host.instance())
    path = str(host.directory / "state/kvm/instances/web1/control")
    with QmpClient.connect(path, _soon()) as client:
        assert client.version >= (7, 2, 0)
        client.execute("stop", deadline=_soon())
        client.wait_event(lambda event: event["event"] == "STOP", _soon())
        with pytest.raises(QmpRefused, match="not found"):
            client.execute("device_del", {"id": "nothing"}, deadline=_soon())
        with pytest.raises(QmpRefused) as caught:
            client.execute("no-such-command", deadline=_soon())
    assert caught.value.error_class == "CommandNotFound"
