"""Bytes to messages and back. Knows nothing of sockets, commands or time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hvcore_kvm.qmp.errors import QmpProtocolError

MESSAGE_LIMIT = 16 * 2**20
"""Longest message that is taken, in bytes; ``query-qmp-schema`` has about 0.2 MiB. A QEMU that its guest has taken
over must not be able to fill the host application's memory."""

Message = dict[str, Any]


def encode(command: str, arguments: Mapping[str, Any] | None, ident: object) -> bytes:
    """One command as a line."""
    message: Message = {"execute": command, "id": ident}
    if arguments:
        message["arguments"] = dict(arguments)
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Decoder:
    """Collects bytes and yields whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        """Add what came.

        Raises:
            QmpProtocolError: the message it belongs to has become too long.
        """
        self._buffer += data
        if len(self._buffer) > MESSAGE_LIMIT and b"\n" not in self._buffer:
            raise QmpProtocolError(f"a message of QEMU is longer than {MESSAGE_LIMIT} bytes")

    def next(self) -> Message | None:
        """The next whole message, ``None`` when more bytes are needed.

        Raises:
            QmpProtocolError: it is not a JSON object.
        """
        end = self._buffer.find(b"\n", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise QmpProtocolError(f"QEMU sent something that is not JSON: {line[:80]!r}") from error
        if not isinstance(message, dict):
            raise QmpProtocolError(f"QEMU sent something that is not a JSON object: {line[:80]!r}")
        return message
