"""What can go wrong with a monitor: never reached, refused by QEMU, cut off, or nonsense.

The split matters to callers: after `QmpConnectError` nothing was asked; after `QmpRefused` QEMU said no; after
`QmpClosed` or `QmpTimeout` with ``sent`` nobody knows whether it happened.
"""

from __future__ import annotations


class QmpError(Exception):
    """Base of all errors of the monitor client."""


class QmpConnectError(QmpError):
    """No monitor was reached: nothing listens, or it greets nobody else while it serves another client."""


class QmpRefused(QmpError):
    """QEMU answered with an error.

    Attributes:
        command: the command.
        error_class: QEMU's class of error, for example ``GenericError`` or ``DeviceNotFound``.
        text: QEMU's own words.
    """

    def __init__(self, command: str, error_class: str, text: str) -> None:
        super().__init__(f"{command}: {text}")
        self.command = command
        self.error_class = error_class
        self.text = text


class QmpTimeout(QmpError):
    """No answer in time.

    Attributes:
        sent: the command had left, so it may yet be carried out.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class QmpClosed(QmpError):
    """The monitor closed the connection.

    Attributes:
        sent: a command had left and was not answered, so it may have been carried out.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class QmpProtocolError(QmpError):
    """What came is no QMP: too long, not JSON, or an answer to something else."""
