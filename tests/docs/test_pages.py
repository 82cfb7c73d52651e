"""The documentation is true: its code runs, its references are what the code says, and it builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

import hvcore

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *(path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts)]

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>[\w{}-]*)[^\n]*\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@attrs.frozen(kw_only=True)
class Block:
    """One code block: its language, its text, the line it begins at, and the comment before it."""

    language: str
    text: str
    line: int
    mark: str


def _blocks(path: Path, language: str) -> Iterator[Block]:
    text = path.read_text()
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        if found["language"] == language:
            yield Block(language=language, text=found["text"], line=line, mark=found["mark"] or "")


def _padded(blocks: list[Block]) -> str:
    """The blocks as one program whose line numbers are those of the page."""
    program = ""
    for block in blocks:
        program += "\n" * (block.line - 1 - program.count("\n")) + block.text
    return program


def _run(program: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **changes})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_python_block_compiles(page: Path) -> None:
    """What looks like Python is Python; signatures in the reference are not meant to be run."""
    for block in _blocks(page, "python"):
        if page.parent.name != "reference":
            compile("\n" * (block.line - 1) + block.text, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_toml_block_can_be_read(page: Path) -> None:
    """What looks like TOML is TOML."""
    for block in _blocks(page, "toml"):
        tomllib.loads(block.text)


@pytest.mark.parametrize("name", ["host-applications", "plugin-authors", "migration"])
def test_the_blocks_marked_run_do(name: str, tmp_path: Path) -> None:
    """The marked blocks of a page are one program, which runs and leaves nothing in its temporary directory."""
    blocks = [block for block in _blocks(DOCS / f"{name}.md", "python") if block.mark == "run"]
    assert blocks
    done = _run(_padded(blocks), TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_the_instance_files_have_no_errors() -> None:
    """Instance files on the pages pass the syntax check of their driver."""
    files = [(name, block.mark, block.text) for name in PAGES for block in _blocks(name, "toml")]
    definitions = [(str(page), mark.split()[1], text) for page, mark, text in files if mark.startswith("instance ")]
    assert definitions
    for where, driver_name, text in definitions:
        with hvcore.load_driver(driver_name) as driver:
            findings = driver.check_parameter_syntax(tomllib.loads(text))
            assert findings.ok, f"{where}: {[str(finding) for finding in findings]}"


@pytest.fixture
def rootless() -> Iterator[tuple[list[str], dict[str, str]]]:
    """What to put before a command so that it runs without root, and its environment, with directories of its own."""
    # Not below tmp_path, which only its owner can enter.
    with tempfile.TemporaryDirectory(prefix="hvcore-") as home:
        environment = {**os.environ, "HOME": home, "XDG_RUNTIME_DIR": home, "TMPDIR": home}
        for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
            environment.pop(variable, None)
        prefix: list[str] = []
        if os.geteuid() == 0:
            os.chown(home, 65534, 65534)
            prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            readable = [*prefix, sys.executable, "-c", "import hvcore"]
            if subprocess.run(readable, env=environment, cwd="/", capture_output=True).returncode:
                pytest.skip("the user nobody cannot read this environment")
        yield prefix, environment
        left = [path.relative_to(home) for path in Path(home).rglob("*") if not path.is_dir()]
        assert [path for path in left if ".cache" not in path.parts] == []


@pytest.mark.qemu
def test_the_application_in_the_readme_runs_as_printed(rootless: tuple[list[str], dict[str, str]]) -> None:
    """The first Python block of the README is a whole program, and needs no root."""
    program = next(_blocks(ROOT / "README.md", "python")).text
    prefix, environment = rootless
    assert len(program.splitlines()) <= 12
    command = [*prefix, sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["running", "the host stopped it by force"]


@pytest.fixture
def fabric(tmp_path: Path) -> Path:
    """The example package of the page for plugin authors, as installed: its files and its entry points."""
    page = DOCS / "plugin-authors.md"
    for block in [*_blocks(page, "python"), *_blocks(page, "toml")]:
        if block.mark.startswith("file: "):
            path = tmp_path / block.mark.removeprefix("file: ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block.text)
    information = tmp_path / "fabric_hv-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fabric-hv\nVersion: 1.0\n")
    with (information / "entry_points.txt").open("w") as file:
        for block in _blocks(page, "toml"):
            if block.mark == "entry-points":
                for group, names in tomllib.loads(block.text)["project"]["entry-points"].items():
                    file.write(f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in names.items()))
    return tmp_path


_USE_FABRIC = """
    import os, socket, sys, tempfile, tomllib
    import hvcore

    # Short: a client connects to a socket in it by its whole path.
    scratch = tempfile.TemporaryDirectory(prefix="hv-", dir="/tmp")
    roots = {f"{kind}_directory": f"{scratch.name}/{kind}" for kind in ("state", "data", "cache")}
    with open(sys.argv[1] + "/segment1.toml", "rb") as file:
        definition = tomllib.load(file)
    definition |= {"consoles": ["serial", "debugcon"], "security_model": "gentle"}
    definition["params"] |= {"gentle": {"nice": 7}}
    with hvcore.load_driver("kvm", roots) as driver:
        wrong = {**definition, "nics": [{"mode": "segment", "link": "br0", "params": {"number": 7}}]}
        assert driver.check_parameter_syntax(wrong).codes == ("not-used",)
        assert any('"mcast":"239.192.0.7:9010"' in word for word in driver.plan_start(definition).argv)
        driver.start_instance(definition)
        try:
            nice = os.getpriority(os.PRIO_PROCESS, driver.get_instance_info("segment1").pid)
            assert nice == min(os.getpriority(os.PRIO_PROCESS, 0) + 7, 19)
            console = driver.get_instance_console("segment1", "debugcon")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(console.socket_path)
        finally:
            driver.stop_instance("segment1", force=True)
    scratch.cleanup()
"""


@pytest.mark.qemu
def test_the_example_plugins_work_with_qemu(fabric: Path) -> None:
    """The NIC mode, console type and security model of the page are found, checked, planned and started."""
    program = textwrap.dedent(_USE_FABRIC)
    command = [sys.executable, "-c", program, str(fabric)]
    searched = [str(fabric), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(searched)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_reference_is_what_the_code_says() -> None:
    """The generated pages are up to date."""
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    """Every link between pages leads somewhere."""
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_links_out_of_the_readme_lead_somewhere() -> None:
    """Relative links of the README name files."""
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_no_page_names_a_place_of_one_machine() -> None:
    """Pages speak of no home directory and no working copy of anybody."""
    private = re.compile(r"/home/\w+|/root/|/tmp/\w")
    assert [page.name for page in PAGES if private.search(page.read_text())] == []


@pytest.fixture
def fresh(tmp_path: Path) -> dict[str, str]:
    """The environment of a person with hvcore and without the network: commands, and a place for packages."""
    site, commands = tmp_path / "venv", tmp_path / "commands"
    commands.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(site)], check=True, timeout=120)
    (packages,) = site.glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("site-packages")))
    with (packages / "outer.pth").open("a") as file:
        file.write(f"{ROOT}\n")
    python = site / "bin" / "python"
    for name, words in (("hv", "-m hvcore.cli"), ("pip", "-m pip"), ("pytest", "-m pytest -q -p no:cacheprovider")):
        (commands / name).write_text(f'#!/bin/sh\nexec {python} {words} "$@"\n')
        (commands / name).chmod(0o755)
    own = {f"HV_{kind.upper()}_DIRECTORY": str(tmp_path / kind) for kind in ("state", "data", "cache")}
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_ROOT_USER_ACTION": "ignore"}
    return {**os.environ, **own, **offline, "PATH": f"{commands}:{os.environ['PATH']}"}


@pytest.mark.qemu
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("page", "words"),
    [
        (
            "plugin-console-type",
            [
                "params.second-port.number",
                '"kind": "second-port"',
                "console type second-port of driver kvm",
                "there is no console type 'second-port'",
            ],
        ),
        (
            "plugin-nic-mode",
            [
                "nics[].params.local_port",
                "\nkvm nic mode ",
                "NIC mode wire of driver kvm",
                "there is no NIC mode 'wire'",
            ],
        ),
        (
            "plugin-security-model",
            ["params.batch.disks", "security model batch of driver kvm", "there is no security model 'batch'"],
        ),
    ],
)
def test_a_plugin_is_made_as_its_page_says(
    page: str, words: list[str], fresh: dict[str, str], free_port: Callable[[], int], tmp_path: Path
) -> None:
    """Every command of the page, in its order, in a fresh environment; every file is written where it says."""
    place = tmp_path / "work"
    place.mkdir()
    said = []
    # What the packages of hv new-plugin test of their family is tested with them.
    fresh["PYTEST_ADDOPTS"] = "-k 'not keeps_what_is_promised'"
    text = (DOCS / f"{page}.md").read_text()
    for port in ("19411", "19412"):
        text = text.replace(port, str(free_port()))
    for found in _BLOCK.finditer(text):
        mark = found["mark"] or ""
        if mark.startswith("file: "):
            path = place / mark.removeprefix("file: ")
            assert path.exists() == path.name.endswith(".py"), f"{path.name} is not where it is said to be"
            path.write_text(found["text"])
        for line in found["text"].splitlines() if mark in ("shell", "fails") else ():
            command = line.removeprefix("$ ")
            if command.startswith("cd "):
                place /= command.removeprefix("cd ")
                continue
            done = subprocess.run(
                command, shell=True, cwd=place, env=fresh, capture_output=True, text=True, timeout=280
            )
            assert (done.returncode == 0) == (mark == "shell"), f"{command}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
            said.append(done.stdout + done.stderr)
    text = "".join(said)
    assert [each for each in words if each not in text] == []
    assert not [path for path in (tmp_path / "state").rglob("*") if not path.is_dir() and path.suffix != ".lock"]
