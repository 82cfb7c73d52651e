"""Extensions by the names of their entry points: made from what is installed, run only when named."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hvcore
from hvcore import LoadError, Metrics
from hvcore.registry import EXTENSION_GROUP

Install = Callable[..., None]

SOURCE = """
    import hvcore

    made = []

    class Extension:
        def __init__(self, *, limit=1):
            self.limit = limit
            made.append(self)

        @hvcore.hookimpl(wrapper=True)
        def hv_operation(self, call):
            return (yield)

    def factory(limit=2):
        return Extension(limit=limit)

    def failing():
        raise RuntimeError("no luck")

    def refusing():
        raise hvcore.HostError("no socket")

    nothing = 5

    class Hookless:
        pass
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs throw-away distributions into a directory on the path."""
    made: list[str] = []

    def make(distribution: str, module: str, entries: dict[str, str], source: str = SOURCE) -> None:
        site = tmp_path / "site"
        site.mkdir(exist_ok=True)
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{value}\n" for name, value in entries.items()]
        (info / "entry_points.txt").write_text(f"[{EXTENSION_GROUP}]\n" + "".join(lines))
        monkeypatch.syspath_prepend(str(site))
        made.append(module)

    yield make
    for module in made:
        sys.modules.pop(module, None)


def _load(settings: dict[str, Any], *extensions: object) -> hvcore.Driver:
    return hvcore.load_driver("fake", settings, extensions=extensions)


def test_the_shipped_ones_are_installed() -> None:
    """Under the names the documentation gives them."""
    shipped = {entry.name for entry in hvcore.available(EXTENSION_GROUP) if entry.distribution == "hvcore"}
    assert shipped == {"audit", "metrics", "policy", "tracing"}


def test_by_name_by_name_and_arguments_and_as_objects(fake_settings: Any, tmp_path: Path) -> None:
    """All three may be mixed; their order stays."""
    log, metrics = tmp_path / "log", Metrics()
    rules = [hvcore.Deny("stop_instance")]
    with _load(fake_settings, ("audit", {"path": log}), metrics, ("policy", {"rules": rules}), "tracing") as driver:
        with pytest.raises(hvcore.PolicyDenied):
            driver.stop_instance("web1")
    assert "policy-denied" in log.read_text()
    assert dict(metrics.snapshot()[0].errors) == {"policy-denied": 1}


def test_installed_is_not_enabled(install: Install, fake_settings: Any) -> None:
    """What nobody names is not even imported."""
    install("acme-ext", "acme_ext", {"acme": "Extension"})
    with _load(fake_settings):
        pass
    assert "acme_ext" not in sys.modules


def test_an_entry_point_is_a_class_or_a_factory(install: Install, fake_settings: Any) -> None:
    """Each name makes an object of its own, with the given arguments."""
    install("acme-ext", "acme_ext", {"acme": "Extension", "made": "factory"})
    with _load(fake_settings, "acme", ("acme", {"limit": 7}), "made"):
        assert [extension.limit for extension in sys.modules["acme_ext"].made] == [1, 7, 2]


def test_an_unknown_name_names_the_installed(fake_settings: Any) -> None:
    """A misspelt one is answered with the names there are."""
    with pytest.raises(LoadError, match="audits: is no installed extension.*audit, metrics, policy, tracing") as caught:
        _load(fake_settings, "audits")
    assert caught.value.findings.codes == ("unknown-plugin",)


def test_two_distributions_with_one_name(install: Install, fake_settings: Any) -> None:
    """Both are named; the settings may prefer one."""
    install("one-ext", "one_ext", {"twin": "Extension"})
    install("two-ext", "two_ext", {"twin": "Extension"})
    with pytest.raises(LoadError, match=r"one-ext 1\.0.* and .*two-ext 1\.0"):
        _load(fake_settings, "twin")
    with _load({**fake_settings, "prefer": "two-ext"}, "twin"):
        assert "one_ext" not in sys.modules


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("failing", "RuntimeError: no luck"),
        ("refusing", "HostError: no socket"),
        ("nothing", "not a class or factory"),
        ("missing", "AttributeError"),
    ],
)
def test_a_broken_one_is_named_with_its_distribution(
    install: Install, fake_settings: Any, value: str, words: str
) -> None:
    """What it raises when it is imported or made is in the error."""
    install("acme-ext", "acme_ext", {"acme": value})
    with pytest.raises(LoadError, match=rf"acme \(acme-ext 1\.0\).*{words}") as caught:
        _load(fake_settings, "acme")
    assert caught.value.findings.codes == ("broken-plugin",)


def test_one_that_is_no_extension_is_named_with_its_distribution(install: Install, fake_settings: Any) -> None:
    """The audit of extensions names the entry point."""
    install("acme-ext", "acme_ext", {"acme": "Hookless"})
    with pytest.raises(LoadError, match=r"acme \(acme-ext 1\.0\): hv_operation"):
        _load(fake_settings, "acme")


@pytest.mark.parametrize("arguments", [{}, {"path": "/x", "pth": 1}])
def test_wrong_arguments(fake_settings: Any, arguments: dict[str, Any]) -> None:
    """Missing and unknown arguments are told with the whole signature, and are no fault of the distribution."""
    with pytest.raises(LoadError, match=r"audit \(hvcore .*path: ") as caught:
        _load(fake_settings, ("audit", arguments))
    assert caught.value.findings.codes == ("wrong-argument",)


@pytest.mark.parametrize("given", [(), ("audit",), ("audit", 5), (5, {}), ("audit", {}, {})])
def test_rubbish_in_the_list(fake_settings: Any, given: Any) -> None:
    """A tuple that is no name with arguments is told by its place."""
    with pytest.raises(LoadError, match=r"extensions\[1\]") as caught:
        _load(fake_settings, Metrics(), given)
    assert caught.value.findings.codes == ("invalid-value",)


def test_one_object_twice(fake_settings: Any) -> None:
    """It would see every operation twice."""
    metrics = Metrics()
    with pytest.raises(LoadError, match="Metrics: is given twice"):
        _load(fake_settings, metrics, metrics)


def test_all_faults_at_once(install: Install, fake_settings: Any) -> None:
    """Every extension is looked at before one of them is refused."""
    install("acme-ext", "acme_ext", {"acme": "failing"})
    with pytest.raises(LoadError) as caught:
        _load(fake_settings, "acme", "nobody", "audit", object(), ())
    assert sorted(caught.value.findings.codes) == [
        "broken-plugin",
        "invalid-value",
        "missing-hook",
        "unknown-plugin",
        "wrong-argument",
    ]
