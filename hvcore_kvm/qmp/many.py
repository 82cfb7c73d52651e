"""The same few questions to many instances side by side, in one thread: a hung one delays nobody."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from hvcore import Deadline
from hvcore_kvm.qmp.client import answer_of, connect_unix
from hvcore_kvm.qmp.errors import QmpClosed, QmpConnectError, QmpError, QmpProtocolError, QmpRefused, QmpTimeout
from hvcore_kvm.qmp.wire import Decoder, Message, encode


@attrs.frozen(kw_only=True)
class Question:
    """Where to ask: any key, and the path of a monitor's UNIX socket."""

    key: str
    path: str


@attrs.frozen(kw_only=True)
class Answer:
    """What one instance answered.

    Attributes:
        results: what each command returned, or the error QEMU refused it with; empty when it did not answer.
        error: why there is no answer.
    """

    results: Mapping[str, Any] = attrs.field(factory=dict)
    error: QmpError | None = None


class _Conversation:
    def __init__(self, connection: socket.socket, commands: Sequence[str]) -> None:
        self.socket = connection
        self.decoder = Decoder()
        self.commands = commands
        self.greeted = False
        self.results: dict[str, Any] = {}

    def take(self, message: Message) -> bool:
        """Use one message; true when everything has been answered."""
        if "event" in message:
            return False
        if not self.greeted:
            if "QMP" not in message:
                raise QmpConnectError("what answered is not a QEMU monitor")
            self.greeted = True
            return False
        ident = message.get("id")
        if ident == 0:
            answer_of("qmp_capabilities", message)
            return not self.commands
        if not isinstance(ident, int) or not 1 <= ident <= len(self.commands):
            raise QmpProtocolError("QEMU answered something nobody asked")
        command = self.commands[ident - 1]
        try:
            self.results[command] = answer_of(command, message)
        except QmpRefused as refused:
            self.results[command] = refused
        return len(self.results) == len(self.commands)


def ask_many(
    questions: Iterable[Question],
    commands: Sequence[str],
    deadline: Deadline,
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Answer]:
    """Ask every monitor the same commands, each over a connection of its own.

    Args:
        questions: whom to ask.
        commands: what to ask, each once.
        deadline: those that have not answered by then get a `QmpTimeout`.
        arguments: arguments of commands that have some.

    Returns:
        An answer for every question, by key.
    """
    answers: dict[str, Answer] = {}
    given = arguments or {}
    words = [encode(command, given.get(command), index) for index, command in enumerate(commands, 1)]
    opening = encode("qmp_capabilities", None, 0) + b"".join(words)
    with selectors.DefaultSelector() as selector:
        waiting: dict[str, _Conversation] = {}
        try:
            for question in questions:
                try:
                    connection = connect_unix(question.path, deadline, blocking=False)
                    # Fits any socket buffer: a few hundred bytes on a fresh connection.
                    connection.send(opening)
                except QmpError as error:
                    answers[question.key] = Answer(error=error)
                    continue
                except OSError as error:
                    connection.close()
                    answers[question.key] = Answer(error=QmpConnectError(str(error)))
                    continue
                waiting[question.key] = _Conversation(connection, commands)
                selector.register(connection, selectors.EVENT_READ, question.key)
            while waiting and not deadline.expired:
                for ready, _ in selector.select(deadline.timeout()):
                    answer = _continue(waiting[ready.data])
                    if answer is not None:
                        answers[ready.data] = answer
                        selector.unregister(ready.fileobj)
                        waiting.pop(ready.data).socket.close()
            for key in waiting:
                answers[key] = Answer(error=QmpTimeout("QEMU did not answer in time", sent=True))
        finally:
            for conversation in waiting.values():
                conversation.socket.close()
    return answers


def _continue(conversation: _Conversation) -> Answer | None:
    try:
        data = conversation.socket.recv(65536)
    except BlockingIOError:
        return None
    except OSError as error:
        return Answer(error=QmpClosed(str(error), sent=True))
    if not data:
        return Answer(error=QmpClosed("QEMU closed its monitor", sent=True))
    try:
        conversation.decoder.feed(data)
        while (message := conversation.decoder.next()) is not None:
            if conversation.take(message):
                return Answer(results=conversation.results)
    except QmpError as error:
        return Answer(error=error)
    return None
