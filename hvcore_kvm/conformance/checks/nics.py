"""A NIC of the mode, added to and removed from an instance that runs."""

from __future__ import annotations

import attrs

from hvcore import DriverFault, Instance, InvalidParameters
from hvcore.conformance import ConformanceFailure, Subject, check, expect, expect_equal, expect_error
from hvcore_kvm.conformance.member import Member
from hvcore_kvm.conformance.traces import Traces, confirmed

_GUEST = 0.2
"""Seconds that a guest is waited for that will not let go: the guest of the suite knows nothing of hotplug."""


@check("FA-12")
def it_is_plugged_and_unplugged(subject: Subject) -> None:
    """It is added and removed, and nothing is left; or it says why it cannot be, and nothing has changed."""
    expect_equal(confirmed(lambda: _attempt(subject)), [], "what is left of a NIC that was added")


def _attempt(subject: Subject) -> list[str]:
    member: Member = subject.profile.member
    bare: Instance = attrs.evolve(subject.definition(), nics=())
    nic = member.nic(bare.name, subject.directory)
    with Traces(subject.directory) as traces:
        subject.driver.start_instance(bare)
        support = subject.driver.verify_hotplug_support(bare.name, "add", nic)
        if support.supported:
            with traces.noting():
                added = subject.driver.hot_add_device(bare.name, nic)
            expect(added.done, f"it was not added: {added.detail}")
            subject.driver.hot_del_device(bare.name, nic.uuid or "", force=True, timeout=_GUEST)
            # A reset of the guest is what completes a removal that the guest does not answer to.
            subject.driver.reboot_instance(bare.name, mode="reset")
            found = subject.driver.verify_instance(bare.name)
            expect(found.ok, f"what is recorded is not what runs: {'; '.join(map(str, found))}")
        else:
            expect(support.reasons and all(support.reasons), "it cannot be added, and there is no reason")
            try:
                expect_error(InvalidParameters, lambda: subject.driver.hot_add_device(bare.name, nic), "adding it")
            except DriverFault as error:
                raise ConformanceFailure(f"adding it: {error}") from error
        expect(subject.lives(bare.name), "the instance has ended")
        subject.driver.stop_instance(bare.name, force=True)
        subject.driver.cleanup_instance(bare.name)
        return traces.left()
