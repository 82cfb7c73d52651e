"""Moving a guest to another modelled host: what the hypervisor does by itself, and what it is told to do."""

from __future__ import annotations

import attrs

from hvcore import Cause, InstanceState, MigrationPhase
from hvcore_fake import guest, link
from hvcore_fake.processes import Processes, process_key
from hvcore_fake.record import Process, Sending
from hvcore_fake.sending import at as in_phase
from hvcore_fake.sending import with_memory


class Moving(Processes):
    """Processes that send their guests to others, and receive them."""

    # What tests make happen

    def cut_link(self, name: str) -> None:
        """The network between the two hosts of a migration is cut, seen from its source."""
        with self.store.locked():
            process = self._living(name)
            if process.sending is not None and not process.sending.phase.is_final:
                self._write(self._stayed(process, process.sending, "the connection was cut"))

    def lose_answer(self, name: str) -> None:
        """The destination of a migration will get all of the guest, and its answer to that will be lost."""
        with self.store.locked():
            process = self._living(name)
            if process.sending is not None:
                self._write(attrs.evolve(process, sending=attrs.evolve(process.sending, answer_lost=True)))

    # What the driver does

    def send(self, name: str, sending: Sending | None, *, live: bool = True) -> None:
        """Begin a migration, change how it goes, or forget it."""
        process = self._living(name)
        self._write(attrs.evolve(process if live else guest.hold(process, self.clock()), sending=sending))

    def begin_memory(self, name: str) -> None:
        """All disks are the same on both sides: it is the turn of its memory."""
        process = self._living(name)
        if process.sending is not None and process.sending.phase is MigrationPhase.DISKS:
            self._write(attrs.evolve(process, sending=with_memory(process.sending, self.clock())))

    def switch_over(self, name: str) -> None:
        """Let a guest that waits to go over go."""
        process = self._living(name)
        if process.sending is not None and process.sending.phase is MigrationPhase.PRE_SWITCHOVER:
            sending = in_phase(process.sending, MigrationPhase.DEVICE, self.clock())
            self._write(attrs.evolve(process, sending=sending))

    def cancel(self, name: str) -> None:
        """Cancel a migration, if it can still be; its guest runs on."""
        process = self._living(name)
        sending = process.sending
        if sending is not None and not sending.phase.is_final and sending.phase is not MigrationPhase.DEVICE:
            self._write(self._stayed(process, sending, "", MigrationPhase.CANCELLED))

    def kill_incoming(self, name: str) -> None:
        """End a process that waits for a guest, or whose guest has not been let in; it says nothing."""
        self.store.remove(link.connection_key(name), process_key(name))

    def let_in(self, name: str, was: InstanceState, because: Cause) -> None:
        """Let a guest that has arrived go on as it was."""
        process = self._living(name)
        if was is InstanceState.RUNNING:
            self._write(guest.thaw(process, self.clock()))
            self.events.append(name, "RESUME")
        else:
            self._write(attrs.evolve(process, state=was, cause=because, since=self.clock()))

    # What happens by itself

    def _phase(self, name: str) -> MigrationPhase | None:
        process = self.process(name)
        return None if process is None or process.sending is None else process.sending.phase

    def _migrate(self, process: Process) -> None:
        """A migration enters its next phase by itself."""
        sending, own, now = process.sending, self.address(process.name), self.clock()
        if sending is None:
            return
        if sending.phase is MigrationPhase.SETUP:
            if link.connect(sending.target, own, process.pid):
                self._write(attrs.evolve(process, sending=in_phase(sending, MigrationPhase.ACTIVE, now)))
            else:
                self._write(self._stayed(process, sending, "nobody listens at the destination"))
        elif link.listens(sending.target) is None:
            self._write(self._stayed(process, sending, "the destination closed the connection"))
        elif sending.phase is MigrationPhase.ACTIVE:
            stopped = guest.hold(process, now)
            self._write(attrs.evolve(stopped, sending=in_phase(sending, MigrationPhase.PRE_SWITCHOVER, now)))
        elif (
            not link.copy_disks(process, sending)
            or not link.deliver(sending.target, own, process)
            or sending.answer_lost
        ):
            self._write(self._stayed(process, sending, "the destination did not answer"))
        else:
            over = attrs.evolve(in_phase(sending, MigrationPhase.COMPLETED, now), downtime=now - process.since)
            left = attrs.evolve(process, state=InstanceState.POSTMIGRATE, cause=Cause.MIGRATION, since=now)
            self._write(attrs.evolve(left, sending=over))

    def _stayed(
        self, process: Process, sending: Sending, error: str, phase: MigrationPhase = MigrationPhase.FAILED
    ) -> Process:
        """The source goes on as before, as it does by itself when a migration fails."""
        ended = attrs.evolve(process, sending=in_phase(sending, phase, self.clock(), error))
        if process.state is not InstanceState.MIGRATING:
            return ended
        if sending.was is InstanceState.RUNNING:
            return guest.thaw(ended, self.clock())
        return attrs.evolve(ended, state=sending.was, cause=sending.was_because, since=self.clock())
