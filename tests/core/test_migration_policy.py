"""How a migration should go: every contradiction of a policy is found, all at once, before anything is touched."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hvcore
from hvcore import AutoConverge, MigrationPolicy, MigrationTls, MultiFd, PostCopy, Seconds, Size, read_migration_policy

UUID = "0b9af6e5-8f4c-4f6c-9f6e-9d2b4f1f7d11"


def _problems(given: Any) -> set[tuple[str, str]]:
    return {(finding.code, finding.path) for finding in read_migration_policy(given)[1]}


def test_the_usual_policy_is_right_and_encrypted() -> None:
    """Without a word about it, both sides show certificates."""
    policy, findings = read_migration_policy({})
    assert findings == []
    assert policy == MigrationPolicy()
    assert policy.tls == MigrationTls(directory="/etc/pki/qemu")
    assert (policy.first_port, policy.last_port) == (49152, 49215)


@pytest.mark.parametrize("given", [{"tls": False}, {"tls": None}, MigrationPolicy(tls=False)])
def test_no_tls_has_to_be_asked_for(given: Any) -> None:
    """By false, which a file can hold, or by None."""
    policy, findings = read_migration_policy(given)
    assert findings == []
    assert policy.tls is None
    assert read_migration_policy({"tls": True})[0].tls == MigrationTls()


def test_a_table_becomes_a_policy() -> None:
    """Sizes and times are text or numbers; parts are tables."""
    policy, findings = read_migration_policy(
        {
            "max_bandwidth": "100MiB",
            "downtime_limit": "500ms",
            "deadline": "10min",
            "tls": {"directory": "/srv/pki", "hostname": "node2.example.org", "authz": "CN=node1"},
            "multifd": {"channels": 8, "compression": "zstd"},
            "auto_converge": {"initial": 30},
            "on_no_convergence": "throttle",
            "switchover": "paused",
        }
    )
    assert findings == []
    assert policy == MigrationPolicy(
        max_bandwidth=Size(100 * 2**20),
        downtime_limit=Seconds(0.5),
        deadline=Seconds(600.0),
        tls=MigrationTls(directory="/srv/pki", hostname="node2.example.org", authz="CN=node1"),
        multifd=MultiFd(channels=8, compression="zstd"),
        auto_converge=AutoConverge(initial=30),
        on_no_convergence="throttle",
        switchover="paused",
    )
    assert read_migration_policy(policy) == (policy, [])


def test_text_is_taken_by_the_record_too() -> None:
    """As for an instance."""
    policy = MigrationPolicy(max_bandwidth="1GiB", downtime_limit="2s")  # type: ignore[arg-type]
    assert (policy.max_bandwidth, policy.downtime_limit) == (2**30, 2.0)
    assert MigrationPolicy(copy_disks="all").copy_disks == ("all",)  # type: ignore[arg-type]
    assert read_migration_policy({"copy_disks": "all"})[0].copy_disks == ("all",)


@pytest.mark.parametrize(
    ("given", "code", "where"),
    [
        ({"first_port": 0}, "invalid-value", "first_port"),
        ({"first_port": 65536}, "invalid-value", "first_port"),
        ({"first_port": 5000, "last_port": 4999}, "contradiction", "last_port"),
        ({"max_bandwidth": 0}, "invalid-value", "max_bandwidth"),
        ({"max_bandwidth": "fast"}, "invalid-value", "max_bandwidth"),
        ({"downtime_limit": 0}, "invalid-value", "downtime_limit"),
        ({"downtime_limit": 2001}, "invalid-value", "downtime_limit"),
        ({"downtime_limit": 3, "downtime_maximum": 2}, "contradiction", "downtime_maximum"),
        ({"deadline": 0}, "invalid-value", "deadline"),
        ({"deadline": 30, "converge_within": 31}, "contradiction", "converge_within"),
        ({"on_no_convergence": "hope"}, "not-a-choice", "on_no_convergence"),
        ({"multifd": {"channels": 0}}, "invalid-value", "multifd.channels"),
        ({"multifd": {"channels": 256}}, "invalid-value", "multifd.channels"),
        ({"multifd": {"compression": "lzma"}}, "not-a-choice", "multifd.compression"),
        ({"multifd": {"threads": 2}}, "unknown-parameter", "multifd.threads"),
        ({"multifd": {}, "postcopy": {"after_passes": 2}}, "contradiction", "multifd"),
        ({"multifd": {}, "on_no_convergence": "postcopy"}, "contradiction", "multifd"),
        ({"postcopy": {"after_passes": 0}}, "invalid-value", "postcopy.after_passes"),
        ({"postcopy": {"preempt": True}}, "contradiction", "postcopy"),
        ({"auto_converge": {"initial": 100}}, "invalid-value", "auto_converge.initial"),
        ({"auto_converge": {"initial": 50, "maximum": 40}}, "contradiction", "auto_converge.maximum"),
        ({"dirty_limit": "512KiB"}, "invalid-value", "dirty_limit"),
        ({"dirty_limit": 2**20 + 1}, "invalid-value", "dirty_limit"),
        ({"dirty_limit": "1MiB", "auto_converge": {}}, "contradiction", "dirty_limit"),
        ({"dirty_limit": "1MiB", "on_no_convergence": "throttle"}, "contradiction", "dirty_limit"),
        ({"live": False, "auto_converge": {}}, "contradiction", "auto_converge"),
        ({"live": False, "postcopy": {"after_passes": 1}}, "contradiction", "postcopy"),
        ({"zero_copy": True, "tls": False}, "incomplete", "zero_copy"),
        ({"zero_copy": True, "multifd": {}}, "contradiction", "zero_copy"),
        ({"zero_copy": True, "tls": False, "multifd": {"compression": "zlib"}}, "contradiction", "zero_copy"),
        ({"switchover": "later"}, "not-a-choice", "switchover"),
        ({"tls": {"directory": "pki"}}, "invalid-value", "tls.directory"),
        ({"tls": {"hostname": "node 2,x"}}, "invalid-value", "tls.hostname"),
        ({"tls": {"authz": "CN=a\nb"}}, "invalid-value", "tls.authz"),
        ({"tls": "yes"}, "wrong-type", "tls"),
        ({"live": 1}, "wrong-type", "live"),
        ({"copy_disks": "some"}, "invalid-value", "copy_disks[0]"),
        ({"copy_disks": ["all", UUID]}, "contradiction", "copy_disks"),
        ({"copy_disks": [UUID, UUID.upper()]}, "repeated-value", "copy_disks"),
        ({"copy_disks": 1}, "wrong-type", "copy_disks"),
        ({"copy_disks": [1]}, "wrong-type", "copy_disks[0]"),
        ({"overwrite_disks": True}, "contradiction", "overwrite_disks"),
        ({"speed": 1}, "unknown-parameter", "speed"),
        ("fast", "wrong-type", ""),
    ],
)
def test_what_is_wrong_is_found(given: Any, code: str, where: str) -> None:
    """Exactly that, at the field it stands in."""
    assert _problems(given) == {(code, where)}


@pytest.mark.parametrize(
    "given",
    [
        {"zero_copy": True, "tls": False, "multifd": {"channels": 4}},
        {"multifd": {"channels": 255, "compression": "zlib"}},
        {"on_no_convergence": "postcopy", "postcopy": {"preempt": True}},
        {"on_no_convergence": "cancel", "postcopy": {"after_passes": 3}},
        {"on_no_convergence": "throttle", "auto_converge": {"maximum": 80}},
        {"dirty_limit": "4MiB", "on_no_convergence": "cancel"},
        {"deadline": 10},
        {"downtime_limit": 60},
        {"live": False, "on_no_convergence": "throttle"},
        {"copy_disks": "all", "overwrite_disks": True, "live": False},
        {"copy_disks": [UUID], "switchover": "paused"},
        {"copy_disks": "all", "postcopy": {"after_passes": 1}},
    ],
)
def test_what_goes_together_is_accepted(given: Any) -> None:
    """No finding for what hypervisors do."""
    assert _problems(given) == set()


def test_everything_is_found_at_once() -> None:
    """Several contradictions, each at its place."""
    given = {
        "zero_copy": True,
        "multifd": {"compression": "zlib"},
        "postcopy": {"after_passes": 1},
        "first_port": 9,
        "last_port": 8,
    }
    assert _problems(given) == {
        ("contradiction", "zero_copy"),
        ("contradiction", "multifd"),
        ("contradiction", "last_port"),
    }
    assert _problems({"live": "no", "multifd": {"channels": 0}, "tls": {"directory": ""}}) == {
        ("wrong-type", "live"),
        ("invalid-value", "multifd.channels"),
        ("invalid-value", "tls.directory"),
    }


def test_what_follows_from_the_policy() -> None:
    """What is done when it does not converge is prepared whether or not its numbers are given."""
    usual = MigrationPolicy()
    assert (usual.throttling, usual.going_over_early) == (None, None)
    assert MigrationPolicy(on_no_convergence="throttle").throttling == AutoConverge()
    assert MigrationPolicy(on_no_convergence="postcopy").going_over_early == PostCopy()
    assert MigrationPolicy(postcopy=PostCopy(after_passes=2)).going_over_early == PostCopy(after_passes=2)
    assert usual.patience == 60
    assert MigrationPolicy(deadline=Seconds(30.0)).patience == 15
    assert MigrationPolicy(converge_within=Seconds(5.0)).patience == 5
    assert usual.longest_downtime == 10
    assert MigrationPolicy(downtime_limit=Seconds(60.0)).longest_downtime == 60


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
_FIELDS = [field.name for field in attrs.fields(MigrationPolicy)]


@given(st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=8), _ANY, max_size=4))
def test_any_value_is_checked_without_a_fault(values: dict[str, Any]) -> None:
    """Whatever is given, there is a policy and a list of findings; a policy without findings is read as itself."""
    policy, findings = read_migration_policy(values)
    if not findings:
        assert read_migration_policy(policy) == (policy, [])


def test_a_driver_is_not_asked_with_a_wrong_policy(tmp_path: Any) -> None:
    """A driver that does not migrate says so; what a wrong policy does to one that does is a finding."""
    roots = {f"{kind}_directory": str(tmp_path / kind) for kind in ("state", "data", "cache")}
    target = hvcore.MigrationTarget(address="127.0.0.1", port=1)
    wrong = MigrationPolicy(zero_copy=True)
    with hvcore.load_driver("fake", roots) as driver:
        claimed = driver.description.claim(hvcore.Capability.MIGRATION).offered
        with pytest.raises(hvcore.InvalidParameters if claimed else hvcore.UnsupportedOperation) as caught:
            driver.migrate_instance("web1", target, wrong)
        if claimed:
            assert {finding.path for finding in caught.value.findings} == {"policy.zero_copy"}
