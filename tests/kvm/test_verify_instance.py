"""Whether the record of an instance and its process agree, whatever its disks are made of."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

import hvcore
from hvcore import Deadline
from hvcore_kvm.hardware.builder import device_id
from hvcore_kvm.qmp import QmpClient

pytestmark = pytest.mark.qemu

_DISK = "5a1d0b62-54c5-4b0e-9a35-0f6c3b0f7d01"


def test_disks_of_all_kinds_agree_until_one_is_taken_away(host: Any) -> None:
    """Throttled, SCSI and NVMe disks are found; one that somebody else removes in QEMU is missed."""
    disks = [
        attrs.evolve(host.raw_disk("a.raw"), uuid=_DISK, params={"throttle": {"iops_total": 100}}),
        attrs.evolve(host.qcow2_disk("b.qcow2"), params={"bus": "scsi"}),
        attrs.evolve(host.raw_disk("c.raw"), params={"bus": "nvme"}),
    ]
    host.start(host.instance(params={"machine": "pc"}, disks=disks)).close()
    assert host.driver.verify_instance("web1").codes == ()
    deadline = Deadline.after(30)
    with QmpClient.connect(str(host.directory / "state/kvm/instances/web1/query"), deadline) as client:
        client.execute("device_del", {"id": device_id("disk", _DISK)}, deadline=deadline)
        client.execute("system_reset", deadline=deadline)
        client.wait_event(
            lambda message: message["event"] == "DEVICE_DELETED" and "device" in message["data"], deadline
        )
    found = host.driver.verify_instance("web1")
    assert [(finding.code, finding.path) for finding in found] == [("drift", "disks")]
    assert "the record says 3, QEMU says 2" in found[0].message
    assert host.driver.get_instance_info("web1").state is hvcore.InstanceState.RUNNING
