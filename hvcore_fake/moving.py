"""Moving a guest to another modelled host: what the hypervisor does by itself, and what it is told to do."""

from __future__ import annotations

import attrs

from hvcore import Cause, InstanceState, MigrationPhase
from hvcore_fake import guest, link
from hvcore_fake.processes import Processes, process_key
from hvcore_fake.record import Process, Sending
from hvcore_fake.sending import at as in_phase
from hvcore_fake.sending import cut_off, gone_over_early, with_memory

OVER = (MigrationPhase.POSTCOPY, MigrationPhase.POSTCOPY_PAUSED)
"""Phases in which the guest lives on both hosts."""


class Moving(Processes):
    """Processes that send their guests to others, and receive them."""

    # What tests make happen

    def cut_link(self, name: str) -> None:
        """The network between the two hosts of a migration is cut, seen from its source."""
        with self.store.locked():
            process = self._living(name)
            sending = process.sending
            if sending is not None and sending.phase in OVER:
                self._write(attrs.evolve(process, sending=cut_off(process, sending, self.clock())))
            elif sending is not None and not sending.phase.is_final:
                self._write(self._stayed(process, sending, "the connection was cut"))

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

    def go_over_early(self, name: str) -> None:
        """Let the guest go over; the rest of its memory follows."""
        process = self._living(name)
        sending, now = process.sending, self.clock()
        if sending is None or sending.phase is not MigrationPhase.ACTIVE:
            return
        stopped = guest.hold(process, now)
        arrived = link.copy_disks(stopped, sending) and link.deliver(
            sending.target, self.address(name), stopped, whole=False
        )
        if arrived:
            self._write(attrs.evolve(stopped, sending=gone_over_early(process, sending, now)))
        else:
            self._write(self._stayed(stopped, sending, "the destination did not answer"))

    def send_rest(self, name: str) -> None:
        """Go on with what follows a guest that has gone over, after it was cut off."""
        process = self._living(name)
        if process.sending is not None and process.sending.phase is MigrationPhase.POSTCOPY_PAUSED:
            again = in_phase(process.sending, MigrationPhase.POSTCOPY, self.clock())
            self._write(attrs.evolve(process, sending=again))

    def rest_of(self, process: Process) -> str:
        """What of the memory of a guest that has arrived here is not here: nothing, what comes, what is cut off."""
        return link.rest_of(self.store, process, self.address(process.name))

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
        if sending is not None and not sending.phase.is_final and sending.phase not in (MigrationPhase.DEVICE, *OVER):
            self._write(self._stayed(process, sending, "", MigrationPhase.CANCELLED))

    def kill_incoming(self, name: str) -> None:
        """End a process that waits for a guest, or whose guest has not been let in; it says nothing."""
        self.store.remove(link.connection_key(name), process_key(name))

    def let_in(self, name: str, was: InstanceState, because: Cause) -> None:
        """Let a guest that has arrived go on as it was."""
        # From here on nobody else writes to its disks.
        process = attrs.evolve(self._living(name), takes=())
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
        elif sending.phase is MigrationPhase.POSTCOPY:
            if link.complete(sending.target, process):
                self._write(self._left(process, in_phase(sending, MigrationPhase.COMPLETED, now)))
            else:
                self._write(attrs.evolve(process, sending=cut_off(process, sending, now)))
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
            self._write(self._left(process, over))

    def _left(self, process: Process, sending: Sending) -> Process:
        """All of a guest has gone over."""
        left = attrs.evolve(process, state=InstanceState.POSTMIGRATE, cause=Cause.MIGRATION, since=self.clock())
        return attrs.evolve(left, sending=sending)

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
