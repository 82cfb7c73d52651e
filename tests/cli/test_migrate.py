"""``hv migrate``: both ends as processes, what dies between them, and what a hostile end says."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from two_hosts import ADDRESS, POLICY, Hosts

import hvcore
from hvcore.cli.migration_progress import progress_words, short_size
from hvcore.cli.migration_wire import LINE_LIMIT, WireError, error_data, error_from, understand
from hvcore.cli.remote_destination import RemoteDestination
from hvcore.cli.transport import SshChoices, Transport, read_transport

Run = Callable[..., subprocess.CompletedProcess[str]]
PEER = ("--driver", "fake", "migration-peer", "web1")
HV = (sys.executable, "-m", "hvcore.cli")
SLOW = 'converge_within = "100000s"\ntls = false\nmax_bandwidth = "1MiB"\n'


def environment(directory: Path, side: str) -> dict[str, str]:
    """Where ``hv`` keeps the state of one of the hosts."""
    own = {f"HV_{kind.upper()}_DIRECTORY": str(directory / side / kind) for kind in ("state", "data", "cache")}
    return {**own, "HV_DRIVER": "fake"}


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts with an instance on the first."""
    made = Hosts(tmp_path)
    made.source.start_instance(hvcore.Instance(name="web1", memory="256MiB", params={"dirty_rate": "16MiB"}))
    yield made
    made.close()


@pytest.fixture
def there(tmp_path: Path) -> tuple[str, ...]:
    """The words that run ``hv`` on the second host."""
    return ("env", *(f"{name}={value}" for name, value in environment(tmp_path, "b").items()), *HV)


@pytest.fixture
def hv(tmp_path: Path, there: tuple[str, ...]) -> Run:
    """Runs ``hv migrate web1`` on the first host."""

    def run(*arguments: str, to: str = "", path: str = "") -> subprocess.CompletedProcess[str]:
        command = [*HV, "migrate", "web1", "--to", to or f"exec:{shlex.join(there)}", "--no-tls", *arguments]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HV_", "SSH_"))}
        own = {**kept, **environment(tmp_path, "a")}
        own["PATH"] = f"{path}:{own['PATH']}" if path else own["PATH"]
        return subprocess.run(command, capture_output=True, text=True, env=own, stdin=subprocess.DEVNULL, timeout=120)

    return run


def test_it_moves_and_says_how_long_it_took(hosts: Hosts, hv: Run) -> None:
    """One line for each phase, one at the end; the guest runs there alone."""
    done = hv("--bandwidth", "256MiB", "--downtime", "100ms")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "web1: moved to env; took 1.11s, the guest paused for 0.1s, 256 MiB sent\n"
    said = [line.split(",")[0] for line in done.stderr.splitlines()]
    assert said == [f"web1: {phase}" for phase in ("setup", "active", "pre-switchover", "device", "completed")]
    assert hosts.runners == hosts.processes == "b"
    again = hv()
    assert (again.returncode, again.stdout) == (3, "")
    assert "it is not running" in again.stderr


def test_it_is_json_on_request(hosts: Hosts, hv: Run, tmp_path: Path) -> None:
    """One document, and nothing on standard error; a policy comes from a file."""
    (tmp_path / "policy.toml").write_text('max_bandwidth = "256MiB"\ndowntime_limit = "200ms"\n')
    done = hv("--json", "--policy", str(tmp_path / "policy.toml"))
    found = json.loads(done.stdout)
    assert (found["instance"], found["transferred"], done.stderr) == ("web1", 256 << 20, "")
    assert found["downtime"] == pytest.approx(0.2, abs=0.01)


def test_through_ssh(hosts: Hosts, hv: Run, there: tuple[str, ...], tmp_path: Path) -> None:
    """The program ssh is run with the host after its options, and a shell over there reads one command."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >{shlex.quote(str(tmp_path / "words"))}\n'
        f'while [ "$1" != -- ]; do shift; done\nshift 2\n'
        f'export SSH_CONNECTION="192.0.2.1 40000 192.0.2.2 22"\nexec sh -c "$*"\n'
    )
    ssh.chmod(0o755)
    script = tmp_path / "hv there"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(there)} "$@"\n')
    script.chmod(0o755)
    done = hv("--remote-hv", str(script), to="ssh://root@other.example:2222", path=str(ssh.parent))
    assert done.returncode == 0, done.stderr
    assert "moved to other.example" in done.stdout
    words = (tmp_path / "words").read_text().splitlines()
    assert words[-6:-2] == ["2222", "-l", "root", "--"]
    assert words[-2:] == ["other.example", f"'{script}' --driver fake migration-peer web1"]
    assert hosts.runners == "b"


def test_what_the_other_host_says_is_known_by_its_name(hosts: Hosts, hv: Run) -> None:
    """Stopping the instance that the hint speaks of would otherwise stop the one that is to be moved."""
    hosts.destination.start_instance(hvcore.Instance(name="web1", memory="64MiB"))
    said = hv()
    assert said.returncode == 4
    assert "on env: it is alive here" in said.stderr
    assert "hint: on env: stop" in said.stderr
    hosts.destination.stop_instance("web1", force=True)
    late = json.loads(hv("--json", "--deadline", "1s", "--bandwidth", "1MiB").stderr)["error"]
    assert late["code"] == "deadline-exceeded"
    assert late["notes"][-1] == "the instance is on the source, as before"
    assert hosts.runners == "a"


@pytest.mark.parametrize("bad", ["", "other", "ssh://", "ssh://-oProxyCommand=x/", "ssh://a b", "ssh://h/path"])
def test_what_is_no_transport(bad: str) -> None:
    """Nor are a host that is an option, one with a path, a wrong port, and no command."""
    for text in (bad, "ssh://h:99999", "ssh://-x@h", "ssh://u:secret@h", "exec:", "exec:'"):
        with pytest.raises(click.BadParameter):
            read_transport(text)


def test_what_is_said_to_ssh() -> None:
    """Before what hvcore asks of it, for ssh takes the first of two; the command to run there stays the last."""
    choices = SshChoices(config="none", identities=("/k1", "-k2"), options=("ServerAliveInterval=60", "Port 22"))
    words = read_transport("ssh://u@h:2222", ssh=choices).command(("list",))
    given = ["-F", "none", "-i", "/k1", "-i", "-k2", "-o", "ServerAliveInterval=60", "-o", "Port 22"]
    assert words[: len(given) + 2] == ["ssh", "-T", *given]
    assert words[-6:] == ["2222", "-l", "u", "--", "h", "hv list"]
    for bad in ("", "ProxyCommand", "-oUser=x", "A=b\nProxyCommand=x"):
        with pytest.raises(click.BadParameter, match="option of ssh"):
            read_transport("ssh://h", ssh=SshChoices(options=(bad,)))
    with pytest.raises(click.BadParameter, match="runs no ssh"):
        read_transport("exec:hv", ssh=SshChoices(identities=("/k",)))


def test_an_identity_that_is_not_there(hosts: Hosts, hv: Run, tmp_path: Path) -> None:
    """Is said before ssh is run, which would go on without it."""
    done = hv("--identity", str(tmp_path / "none"), to="ssh://h")
    assert done.returncode == 2, done.stderr
    assert str(tmp_path / "none") in done.stderr
    assert hosts.runners == "a"


@pytest.mark.usefixtures("heeds_signals")
def test_the_interrupt_key_cancels(hosts: Hosts, there: tuple[str, ...], tmp_path: Path) -> None:
    """It reaches both ends, as on a terminal: the guest stays, and the other host holds nothing."""
    (tmp_path / "slow.toml").write_text(SLOW)
    command = [*HV, "migrate", "web1", "--to", f"exec:{shlex.join(there)}", "--policy", str(tmp_path / "slow.toml")]
    own = {**os.environ, **environment(tmp_path, "a")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=own, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "active" in line:
                os.killpg(process.pid, signal.SIGINT)
                break
        said = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in said
    assert "the instance is on the source, as before" in said
    assert hosts.runners == hosts.processes == "a"
    assert hosts.destination.list_instances().instances == ()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "operation", ["greeting", "get_node_info", "accept_instance", "get_instance_info", "finalize_migration_dst"]
)
def test_the_other_end_dies_at_a_message(
    hosts: Hosts, there: tuple[str, ...], operation: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One side has it, the error says which or what to do, and the same once more ends on the other host."""
    monkeypatch.setattr("hvcore.migration.STILL_THERE", 0.0)
    relay = (sys.executable, str(Path(__file__).parent / "dying_peer.py"), operation, when)
    dying = Transport(words=(*relay, *there), hv="", title="other")
    with pytest.raises(hvcore.HypervisorError) as caught, RemoteDestination(dying, PEER) as destination:
        hvcore.migrate(hosts.source, destination, "web1", POLICY, hosts.watch, address=ADDRESS, patience=0.3)
    hosts.watch()
    if operation == "finalize_migration_dst":
        assert isinstance(caught.value, hvcore.OutcomeUnknown)
        assert "migrate it once more" in str(caught.value)
        assert hosts.runners == ("b" if when == "after" else "")
    else:
        assert hosts.runners == "a"
    hosts.destination.recover()
    hosts.source.recover()
    with RemoteDestination(Transport(words=there, hv="", title="other"), PEER) as destination:
        hvcore.migrate(hosts.source, destination, "web1", POLICY, hosts.watch, address=ADDRESS)
    assert hosts.runners == hosts.processes == "b"


GREETING = json.dumps({"hv_migration_peer": 1, "hvcore": "0"})
HOSTILE = {
    "silence": "import sys; sys.exit()",
    "a login banner": "print('Welcome!', flush=True)",
    "another version": """print('{"hv_migration_peer": 99, "hvcore": "9"}', flush=True)""",
    "deep nesting": "print('[' * 100000, flush=True)",
    "endless": f"import sys\nfor _ in range({LINE_LIMIT // 65536 + 2}): sys.stdout.write('x' * 65536)",
    "no answer": f"print({GREETING!r}, flush=True); input()",
    "garbage": f"print({GREETING!r}, flush=True); input(); print('\\x00\\xff', flush=True); input()",
    "another number": f"print({GREETING!r}, flush=True); input()\n"
    'print(\'{"number": 7, "result": {}}\', flush=True); input()',
    "wrong types": f"print({GREETING!r}, flush=True); input()\n"
    'print(\'{"number": 1, "result": {"hypervisor": [[5]]}}\', flush=True); input()',
    "both": f"print({GREETING!r}, flush=True); input()\n"
    'print(\'{"number": 1, "result": {}, "error": {}}\', flush=True); input()',
    "an error that is none": f"print({GREETING!r}, flush=True); input()\n"
    'print(\'{"number": 1, "error": {"type": "SystemExit"}}\', flush=True); input()',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_destination(hosts: Hosts, what: str) -> None:
    """Whatever it says is an error, in its time; the instance runs on, untouched."""
    bad = Transport(words=(sys.executable, "-c", HOSTILE[what]), hv="", title="other")
    before = hosts.source.get_instance_info("web1").pid
    with pytest.raises(hvcore.HypervisorError, match="on other"), RemoteDestination(bad, ()) as destination:
        hvcore.migrate(hosts.source, destination, "web1", POLICY, address=ADDRESS, patience=0.3)
    assert hosts.source.get_instance_info("web1").pid == before
    assert hosts.runners == "a"


def _request(operation: str, **arguments: Any) -> str:
    return json.dumps({"number": 1, "operation": operation, "arguments": arguments}) + "\n"


INFO = {"schema": 1, "driver": "fake", "instance": "web1", "record": {}}
DEMANDS = {
    "nothing": "",
    "garbage": "\x00\n",
    "another operation": _request("stop_instance", instance="web1"),
    "private things": _request("_abandoned"),
    "another instance": _request("finalize_migration_dst", info={**INFO, "instance": "db1"}, success=False),
    "no record": _request("accept_instance", info=5, address=ADDRESS, policy={}),
    "more than there is": _request("finalize_migration_dst", info=INFO, success=False, force=True),
    "half a line": '{"number": 1',
}


@pytest.mark.parametrize("what", DEMANDS)
def test_a_hostile_source(hosts: Hosts, there: tuple[str, ...], what: str) -> None:
    """The other end serves one instance and four requests; after anything else it ends."""
    hosts.destination.start_instance(hvcore.Instance(name="db1"))
    done = subprocess.run([*there, *PEER], input=DEMANDS[what], capture_output=True, text=True, timeout=120)
    assert len(done.stdout.splitlines()) == 1, done.stdout
    assert done.returncode == 0, done.stderr
    assert hosts.destination.get_instance_info("db1").state is hvcore.InstanceState.RUNNING
    assert [row.name for row in hosts.destination.list_instances().instances] == ["db1"]


def test_what_the_destination_refuses_is_said_here(hosts: Hosts, there: tuple[str, ...]) -> None:
    """As the same error, with its findings."""
    hosts.destination.start_instance(hvcore.Instance(name="web1"))
    with RemoteDestination(Transport(words=there, hv="", title="other"), PEER) as destination:
        with pytest.raises(hvcore.AlreadyRunning, match="it is alive here"):
            hvcore.migrate(hosts.source, destination, "web1", POLICY, address=ADDRESS)
        info = hvcore.MigrationInfo(schema=9, driver="kvm", instance="web1", record={})
        with pytest.raises(hvcore.InvalidParameters) as caught:
            destination.accept_instance(info, ADDRESS, hvcore.MigrationPolicy())
    assert {"driver", "schema"} <= {finding.path for finding in caught.value.findings}


@pytest.mark.parametrize(
    "error",
    [
        hvcore.NotRunning("not there", hint="start it"),
        hvcore.SpawnFailed("it ended", output="x" * 10),
        hvcore.HypervisorRefused("cont", "GenericError", "no"),
        hvcore.OutcomeUnknown("who knows", code="special"),
    ],
)
def test_errors_travel(error: hvcore.HypervisorError) -> None:
    """Class, code, hint and words arrive."""
    found = error_from(json.loads(json.dumps(error_data(error))))
    assert (type(found), found.code, found.hint) == (type(error), error.code, error.hint)
    assert error.message.rpartition(": ")[2] in found.message
    with pytest.raises(WireError):
        error_from({"message": "without a code"})
    with pytest.raises(WireError):
        understand(b"null", hvcore.MigrationTarget)


def test_progress_in_words() -> None:
    """Sizes are short, and what is not known is left out."""
    status = hvcore.MigrationStatus(
        phase=hvcore.MigrationPhase.ACTIVE,
        transferred=3 << 20,
        remaining=5 << 30,
        rate=1023.6 * 2**20,
        dirty_rate=10,
        expected_downtime=0.25,
    )
    words = "active, 3 MiB sent, 1024 MiB/s, 10 B/s changed, 5 GiB remain, pause of 0.25s expected"
    assert progress_words(status) == words
    assert short_size(3 * 2**40) == "3 TiB"
    assert short_size(5000 * 2**40) == "5000 TiB"
