"""`SerialClient`: a program at the serial console of the firmware guest, which answers whoever is attached."""

from __future__ import annotations

import os
import select
import socket

from hvcore import Deadline

_PATIENCE = 30.0
_ASK_AGAIN = 0.1


class SerialClient:
    """Connects to the console, and waits if somebody is attached.

    Args:
        directory: the instance's directory.
    """

    def __init__(self, directory: str) -> None:
        # A path to a socket has to be short.
        folder = os.open(directory, os.O_PATH)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(f"/proc/self/fd/{folder}/serial")
        except BaseException:
            self._socket.close()
            raise
        finally:
            os.close(folder)

    def wait_attached(self) -> bool:
        """Ask the guest until it answers; who is in line gets no answer."""
        deadline, said = Deadline.after(_PATIENCE), b""
        while b"ok" not in said and not deadline.expired:
            self._socket.sendall(b"e")
            if select.select([self._socket], [], [], _ASK_AGAIN)[0]:
                received = self._socket.recv(4096)
                if not received:
                    return False
                said += received
        return b"ok" in said

    def wait_detached(self) -> bool:
        """Read what is left until QEMU has closed the connection."""
        deadline = Deadline.after(_PATIENCE)
        while select.select([self._socket], [], [], deadline.remaining())[0]:
            try:
                if not self._socket.recv(4096):
                    return True
            except ConnectionError:
                return True
        return False

    def close(self) -> None:
        """Let go of the console."""
        self._socket.close()
