"""`ModelledClient`: a program at the console of a modelled instance, for the conformance suite."""

from __future__ import annotations

from hvcore import Driver
from hvcore_fake.record import Client
from hvcore_fake.world import World


class ModelledClient:
    """Connects to the serial console, and waits if somebody is attached.

    Args:
        driver: whose world it is.
        name: the instance.
    """

    def __init__(self, driver: Driver, name: str) -> None:
        self._world = World.of(driver)
        self._name = name
        self._client = Client(kind="serial", program=f"client {id(self)}")
        self._world.attach_client(name, self._client.program)

    def wait_attached(self) -> bool:
        """It is the first; nothing in this world would change that by itself."""
        return self._clients()[:1] == (self._client,)

    def wait_detached(self) -> bool:
        """It is not there any more."""
        return self._client not in self._clients()

    def close(self) -> None:
        """Let go of the console."""
        if self._client in self._clients():
            self._world.detach_client(self._name, self._client.program)

    def _clients(self) -> tuple[Client, ...]:
        process = self._world.process(self._name)
        return () if process is None else process.clients
