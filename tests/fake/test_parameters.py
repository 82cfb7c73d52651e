"""What can be set, what is found wrong with it, and what a host stands against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from hvcore import Disk, Driver, Instance, InvalidParameters, LoadError, Nic, Severity
from hvcore_fake import GuestParameters

Load = Callable[..., Driver]


def test_the_parameters_are_those_of_the_guest(driver: Driver) -> None:
    """One section, at the instance."""
    assert [section.fields for section in driver.parameters().at("instance")] == [GuestParameters]


def test_the_defaults_are_valid(driver: Driver) -> None:
    """A definition of a name alone has no findings."""
    assert driver.check_parameter_syntax({"name": "web1"}).codes == ()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"params": {"boot_tiem": 1}}, "params.boot_tiem"),
        ({"params": {"boot_time": True}}, "params.boot_time"),
        ({"params": {"on_panic": "reboot"}}, "params.on_panic"),
        ({"params": {"panic_after": 9, "power_off_after": 3}}, "params.panic_after"),
        ({"disks": [{"path": "/a", "format": "raw", "params": {"cache": "none"}}]}, "disks[0].params.cache"),
        ({"nics": [{"params": {"vlan": 3}}]}, "nics[0].params.vlan"),
        ({"nics": [{"mode": "brigded"}]}, "nics[0].mode"),
        ({"consoles": ["spice"]}, "consoles[0]"),
        ({"security_model": "poool"}, "security_model"),
    ],
)
def test_mistakes_are_found_where_they_are(driver: Driver, changes: dict[str, object], path: str) -> None:
    """One finding each, at its place."""
    findings = driver.check_parameter_syntax({"name": "web1", **changes})
    assert [finding.path for finding in findings] == [path]


def test_a_definition_of_another_driver_can_be_accepted(load: Load) -> None:
    """With the setting, what is foreign is ignored, and what is wrong is still found."""
    foreign = Instance(
        name="web1",
        params={"machine": "q35", "boot_time": "x"},
        consoles=["spice", "serial"],
        security_model="pool",
        nics=[Nic(mode="geneve", params={"vni": 7})],
    )
    assert [f.path for f in load(accept_foreign=True).check_parameter_syntax(foreign)] == ["params.boot_time"]

    driver = load(accept_foreign=True)
    driver.start_instance(attrs.evolve(foreign, params={"machine": "q35"}))
    assert driver.get_instance_console("web1").kind == "spice"


def test_every_disk_is_looked_at(driver: Driver, tmp_path: Path) -> None:
    """All findings at once: missing, no file, declared wrongly in both directions."""
    (tmp_path / "a.raw").write_bytes(bytes(512))
    (tmp_path / "b.qcow2").write_bytes(b"QFI\xfb" + bytes(508))
    given = [("none", "raw"), ("", "raw"), ("a.raw", "qcow2"), ("b.qcow2", "raw"), ("b.qcow2.", "qcow2")]
    disks = [Disk(path=str(tmp_path / name), format=kind) for name, kind in given[:-1]]

    findings = driver.validate_parameters(Instance(name="web1", disks=disks))
    assert findings.codes == ("disk-missing", "disk-not-a-file", "disk-format", "disk-format")
    assert [finding.path for finding in findings] == [
        "disks[0].path",
        "disks[1].path",
        "disks[2].format",
        "disks[3].format",
    ]


def test_good_disks_have_no_findings(driver: Driver, tmp_path: Path, raw_disk: Disk) -> None:
    """Each format with its own header."""
    (tmp_path / "b.qcow2").write_bytes(b"QFI\xfb" + bytes(508))
    disks = [raw_disk, Disk(path=str(tmp_path / "b.qcow2"), format="qcow2", read_only=True)]

    assert driver.validate_parameters(Instance(name="web1", disks=disks)).codes == ()


@pytest.mark.parametrize(("mine", "theirs", "found"), [(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 0)])
def test_a_disk_in_use_is_refused_unless_both_only_read(
    driver: Driver, raw_disk: Disk, mine: int, theirs: int, found: int
) -> None:
    """Two writers destroy an image, and so do a writer and a reader."""
    driver.start_instance(Instance(name="web1", disks=[attrs.evolve(raw_disk, read_only=bool(theirs))]))
    other = Instance(name="web2", disks=[attrs.evolve(raw_disk, read_only=bool(mine))])

    assert driver.validate_parameters(other).codes == ("disk-in-use",) * found
    if found:
        with pytest.raises(InvalidParameters):
            driver.start_instance(other)


def test_a_disk_is_free_when_its_instance_has_ended(driver: Driver, raw_disk: Disk) -> None:
    """Only living instances use disks, and no instance is in its own way."""
    driver.start_instance(Instance(name="web1", disks=[raw_disk]))
    assert driver.validate_parameters(Instance(name="web1", disks=[raw_disk])).codes == ()
    driver.stop_instance("web1")

    assert driver.start_instance(Instance(name="web2", disks=[raw_disk])).changed


def test_advice_about_what_is_too_large(driver: Driver) -> None:
    """Legal, unwise, and no error."""
    findings = driver.assess_parameters(Instance(name="web1", memory=2**50, vcpus=4096))

    assert findings.codes == ("memory-overcommit", "cpu-overcommit")
    assert {finding.severity for finding in findings} == {Severity.ADVICE}


def test_wrong_settings_are_all_named(load: Load) -> None:
    """Every mistake in the settings is in the one error."""
    with pytest.raises(LoadError) as caught:
        load(alow_powercycle=True, accept_foreign=1)
    assert sorted(finding.path for finding in caught.value.findings) == ["accept_foreign", "alow_powercycle"]
