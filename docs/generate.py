"""Write the pages below ``docs/reference`` from the code: ``python docs/generate.py``, or ``--check`` to compare.

The part "Unreleased" of ``CHANGELOG.md`` is put together from its fragments as well.

The pages are the same on every host: nothing of them comes from a probe.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

import hvcore
from hvcore.hookspecs import table
from hvcore.params.declare import declaration
from hvcore.params.explain import ParameterRow, place_path, type_words

REFERENCE = Path(__file__).resolve().parent / "reference"

_NOTICE = "<!-- Written by docs/generate.py; do not edit. -->"
_DRIVERS = ("kvm", "fake")
_CHANGES = {"start": "at the next start", "hotplug": "by hotplug", "live": "at once"}


def load(name: str, directory: str) -> hvcore.Driver:
    """A driver whose directories are temporary, so that no page depends on this host."""
    roots = {f"{kind}_directory": f"{directory}/{kind}" for kind in ("state", "data", "cache")}
    return hvcore.load_driver(name, {**roots, "host_id": "documentation"})


def operations() -> str:
    """Every operation: method, hook, capability, lock, default timeout, and what the specification says."""
    lines = ["# Operations", ""]
    lines += [
        "One section for each operation, in the order of `hvcore.OPERATIONS`.",
        "The method is what a host application calls; the hook is what a driver implements.",
        "All errors are described in [errors](errors.md), capabilities in [capabilities](capabilities.md).",
        "`timeout` is in seconds; when it is not given the default below holds.",
        "",
        "| operation | capability | takes the instance's lock | default timeout | since |",
        "|---|---|---|---|---|",
    ]
    for operation in table.OPERATIONS:
        needs = f"`{operation.capability.value}`" if operation.capability else "none: every driver"
        locked = "yes" if takes_lock(operation) else "no"
        lines.append(
            f"| [`{operation.name}`](#{operation.name}) | {needs} | {locked} "
            f"| {_default_timeout(operation)} | {operation.since} |"
        )
    for module in table.SPECIFICATIONS:
        topic = module.__name__.rpartition(".")[2]
        # "Topic" keeps the anchors of topics and of operations of the same name apart.
        lines += ["", f"## Topic: {topic}", "", *paragraphs(module.__doc__ or "")]
        for operation in table.OPERATIONS:
            if operation.topic == topic:
                lines += _operation(operation, module)
        if topic == "operation":
            lines += ["", "### hv_operation", "", *_hook("hv_operation", module), *_specification(module.hv_operation)]
    return page(lines)


def takes_lock(operation: table.Operation) -> bool:
    """The facade holds the instance's lock: it changes something, and a name is known before it begins."""
    return operation.mutating and operation.name != "restore_instance"


def _default_timeout(operation: table.Operation) -> str:
    timeout = inspect.signature(getattr(hvcore.Driver, operation.name)).parameters.get("timeout")
    if timeout is None:
        return "has none"
    return f"{operation.default_timeout if timeout.default is None else timeout.default:g} s"


def _operation(operation: table.Operation, module: Any) -> list[str]:
    method = getattr(hvcore.Driver, operation.name)
    specification = getattr(module, operation.hook)
    return [
        "",
        f"### {operation.name}",
        "",
        "```python",
        f"driver.{operation.name}{shown_signature(method)}",
        "```",
        "",
        *_specification(specification),
        "",
        *_hook(operation.hook, module),
    ]


def _hook(name: str, module: Any) -> list[str]:
    return ["**Hook:**", "", "```python", f"{name}{shown_signature(getattr(module, name))}", "```", ""]


def shown_signature(function: Callable[..., Any]) -> str:
    """A signature as it stands in the code, without ``self``."""
    found = inspect.signature(function)
    rest = [p for name, p in found.parameters.items() if name != "self"]
    text = str(found.replace(parameters=rest))
    # Annotations are text in these modules; only the quotes of whole annotations go, not those inside Literal.
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", re.sub(r'(: |-> )"([^"]*)"', r"\1\2", text))


def _specification(function: Callable[..., Any]) -> list[str]:
    """The docstring of a hook specification as markdown."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.getdoc(function) or ""):
        head, _, rest = block.partition("\n")
        if head in ("Args:", "Returns:", "Errors:"):
            title = head[:-1].replace("Args", "Arguments")
            whole = [] if head == "Args:" else [plain(rest)]
            lines += ["", " ".join([f"**{title}:**", *whole]), "", *(() if whole else _items(rest))]
        elif head.startswith(("Errors:", "Capability:")):
            for sentence in re.split(r"(?= Since:)", plain(block)):
                kind, _, text = sentence.strip().partition(":")
                lines += ["", f"**{kind}:** {text.strip()}"]
        else:
            lines += ["", *paragraphs(block)]
    return lines[1:]


def _items(text: str) -> Iterator[str]:
    for item in re.split(r"\n(?=    \w)", "\n" + text):
        name, _, meaning = item.strip().partition(":")
        if name:
            yield f"- `{name}`: {plain(meaning)}"


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a docstring as lines of markdown, one sentence each."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines += ["", *re.split(r"(?<=[.:]) (?=[A-Z`])", plain(block))]
    return lines[1:]


def plain(text: str) -> str:
    """One line of markdown from a docstring's text."""
    return " ".join(text.split()).replace("``", "`")


def cell(text: str) -> str:
    """Text for a table."""
    return plain(text).replace("|", "\\|") or " "


def parameters(name: str) -> str:
    """Every parameter of a driver."""
    with tempfile.TemporaryDirectory() as directory, load(name, directory) as driver:
        rows = hvcore.parameter_rows(driver.parameters())
        sections = {section.title: section for section in driver.parameters().sections}
    lines = [f"# Parameters of driver {name}", ""]
    lines += [
        "The sections of the model come first and are the same for every driver.",
        "A path is where the value stands in an instance file; `[]` stands for each disk or NIC.",
    ]
    aliases = [(alias, row.path) for row in rows for alias in row.declaration.aliases]
    if aliases:
        lines += [
            "The last table has the names that Ganeti uses, for those who come from there; `hv params` finds them too.",
            "They are not accepted in a definition.",
        ]
    last = None
    printed: dict[type, str] = {}
    for row in rows:
        # The model and a driver may both have a section "Disk"; the path tells them apart.
        section = sections.get(row.section)
        base = place_path(section) if section is not None else ""
        if section is not None and not row.path.startswith(f"{base}."):
            section, base = None, ""
        if (row.section, base) != last:
            last = (row.section, base)
            of = "model" if section is None else section.plugin or f"driver {name}"
            title = row.section if of == row.section else f"{row.section} ({of})"
            lines += ["", f"## {title[0].upper()}{title[1:]}", ""]
            same = printed.get(section.fields) if section is not None else None
            if same:
                lines += [f"Below `{base}`: the same as below `{same}`, for all that do not say otherwise."]
            else:
                lines += _PARAMETER_HEAD
        if section is not None and printed.setdefault(section.fields, base) != base:
            continue
        lines.append(_parameter(row))
    if aliases:
        lines += ["", "## Names in Ganeti", "", "| Ganeti | here |", "|---|---|"]
        lines += [f"| `{alias}` | `{path}` |" for alias, path in sorted(aliases)]
    return page(lines)


_PARAMETER_HEAD = (
    "| parameter | type | default | choices | takes effect | since | |",
    "|---|---|---|---|---|---|---|",
)


def _parameter(row: ParameterRow) -> str:
    declared = row.declaration
    default = "required" if row.required else "not set" if row.default == "none" else f"`{row.default}`"
    choices = ", ".join(f"`{choice}`" for choice in declared.choices) or " "
    secret = " Secret: never shown, logged or recorded." if declared.secret else ""
    return (
        f"| `{row.path}` | {row.type} | {default} | {choices} | {_CHANGES[declared.changes]} | {declared.since} "
        f"| {cell(declared.summary)}{secret} |"
    )


def settings_kvm() -> str:
    """The settings a host application gives to ``load_driver``."""
    from hvcore_kvm.settings import KvmSettings

    lines = ["# Settings of driver kvm", ""]
    lines += [
        "Settings are what a host application decides about the driver as a whole.",
        "They are the second argument of `hvcore.load_driver`.",
        "",
        "## Of the driver",
        "",
        "| setting | type | default | |",
        "|---|---|---|---|",
    ]
    for field in attrs.fields(attrs.resolve_types(KvmSettings)):
        declared = declaration(field)
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        unit = f" {declared.unit}" if declared.unit else ""
        lines.append(f"| `{field.name}` | {type_words(field.type)} | `{default}`{unit} | {cell(declared.summary)} |")
    lines += [
        "",
        "## Of hvcore, for every driver",
        "",
        "| setting | type | default | |",
        "|---|---|---|---|",
        *(f"| `{name}` | {kind} | {default} | {meaning} |" for name, kind, default, meaning in _SHARED_SETTINGS),
    ]
    return page(lines)


def migration_policy() -> str:
    """The policy that a migration is asked for with."""
    records = (hvcore.MigrationPolicy, hvcore.MigrationTls, hvcore.MultiFd, hvcore.PostCopy, hvcore.AutoConverge)
    lines = ["# Migration policy", ""]
    lines += [
        "`hvcore.MigrationPolicy` says how an instance is to be moved.",
        "`accept_instance` and `migrate_instance` take it, and refuse one with errors before anything is touched.",
        "`hvcore.read_migration_policy` makes one from a table, and finds everything that is wrong with it.",
    ]
    for record in records:
        lines += ["", f"## {record.__name__}", "", *paragraphs(record.__doc__ or ""), ""]
        lines += ["| field | type | default | choices | |", "|---|---|---|---|---|"]
        for field in attrs.fields(attrs.resolve_types(record)):
            declared = declaration(field)
            choices = ", ".join(f"`{choice}`" for choice in declared.choices) or " "
            unit = f" {declared.unit}" if declared.unit and field.default is not None else ""
            default = "not set" if field.default is None else f"`{_plain_default(field.default)}`{unit}"
            lines.append(
                f"| `{field.name}` | {type_words(field.type)} | {default} | {choices} | {cell(declared.summary)} |"
            )
    return page(lines)


def _plain_default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value.factory.__name__}()" if hasattr(value, "factory") else str(value)


_SHARED_SETTINGS = (
    (
        "state_directory",
        "absolute path",
        "`/run/hvcore` for root, else `hvcore` below `XDG_RUNTIME_DIR`",
        "Volatile state; the driver uses a directory of its own name below it.",
    ),
    (
        "data_directory",
        "absolute path",
        "`/var/lib/hvcore` for root, else `hvcore` below `XDG_STATE_HOME`",
        "What outlives a boot of the host.",
    ),
    (
        "cache_directory",
        "absolute path",
        "`/var/cache/hvcore` for root, else `hvcore` below `XDG_CACHE_HOME`",
        "What can be made again.",
    ),
    ("prefer", "text", "not set", "A distribution, when two offer a plugin of the same name."),
    (
        "host_id",
        "text",
        "the machine id",
        "What tells this host from others: derived uuids and hardware addresses depend on it.",
    ),
)


def schema_kvm() -> str:
    """The JSON Schema of an instance file."""
    with tempfile.TemporaryDirectory() as directory, load("kvm", directory) as driver:
        return json.dumps(hvcore.json_schema(driver.parameters(), "kvm"), indent=2) + "\n"


def errors() -> str:
    """The tree of errors, and what a caller may conclude from each."""
    module = importlib.import_module("hvcore.errors")
    tree = re.search(r"::\n\n(.*)", module.__doc__ or "", re.DOTALL)
    lines = ["# Errors", ""]
    lines += [
        "Every error that leaves hvcore or a driver is one of these.",
        "`code` is stable; an error may carry a more specific one than its class.",
        "`outcome` says what became of the operation.",
        "What to do then is in [errors by outcome](../host-applications.md#errors-by-outcome).",
        "",
        "```text",
        inspect.cleandoc(tree[1] if tree else ""),
        "```",
        "",
        "| class | code | outcome | retryable | |",
        "|---|---|---|---|---|",
    ]
    for depth, kind in _subclasses(hvcore.HypervisorError):
        first = (kind.__doc__ or "").split("\n")[0]
        bases = "" if depth == 0 else f" Kind of `{_public_base(kind).__name__}`."
        retryable = "yes" if kind.retryable else "no"
        lines.append(f"| `{kind.__name__}` | `{kind.code}` | {kind.outcome} | {retryable} | {cell(first)}{bases} |")
    lines += [
        "",
        "## More specific codes",
        "",
        "Where a class alone says too little, an error carries one of these codes instead of that of its class.",
        "",
        "| code | class | raised by |",
        "|---|---|---|",
    ]
    lines += [f"| `{code}` | `{kind}` | {', '.join(by)} |" for (code, kind), by in sorted(_codes().items())]
    return page(lines)


def _codes() -> dict[tuple[str, str], list[str]]:
    """The codes given where errors are raised, with the packages that raise them, from the source."""
    kinds = {kind.__name__ for _, kind in _subclasses(hvcore.HypervisorError)}
    found: dict[tuple[str, str], list[str]] = {}
    for package in ("hvcore", "hvcore_fake", "hvcore_kvm"):
        for path in sorted((REFERENCE.parents[1] / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in kinds:
                    continue
                for word in node.keywords:
                    if word.arg == "code" and isinstance(word.value, ast.Constant):
                        by = found.setdefault((str(word.value.value), getattr(node.func, "id", "")), [])
                        by += [package] if package not in by else []
    return found


def _subclasses(kind: type[Any], depth: int = 0) -> Iterator[tuple[int, type[Any]]]:
    if not kind.__name__.startswith("_") and kind.__module__ == "hvcore.errors":
        yield depth, kind
    for below in kind.__subclasses__():
        if below.__module__ == "hvcore.errors":
            yield from _subclasses(below, depth + 1)


def _public_base(kind: type[Any]) -> type[Any]:
    return next(base for base in kind.__mro__[1:] if not base.__name__.startswith("_"))


def capabilities() -> str:
    """What each shipped driver claims, and which operations need which capability."""
    claims = {}
    for name in _DRIVERS:
        with tempfile.TemporaryDirectory() as directory, load(name, directory) as driver:
            # What is claimed in general: a probe of the host that makes this page must not show.
            general = getattr(driver.plugin, "claims", driver.description.claims)
            claims[name] = attrs.evolve(driver.description, claims=general)
    lines = ["# Capabilities", ""]
    lines += [
        "What a driver does not claim, the facade refuses with `UnsupportedOperation`.",
        "Operations that are not listed here need no capability: every driver has them.",
        "",
        f"| capability | operations | {' | '.join(_DRIVERS)} |",
        f"|---|---|{'---|' * len(_DRIVERS)}",
    ]
    for capability in hvcore.Capability:
        needing = [f"`{o.name}`" for o in table.OPERATIONS if o.capability is capability]
        needing += _PARTIAL.get(capability.value, [])
        shown = [_claim(claims[name].claim(capability)) for name in _DRIVERS]
        lines.append(f"| `{capability.value}` | {', '.join(needing)} | {' | '.join(shown)} |")
    return page(lines)


_PARTIAL = {
    "start-paused": ["`start_instance` with `paused=True`"],
    "graceful-stop": ["`stop_instance` with `escalate=False` and without `force`"],
    "backup-compression": ["`backup_instance` with `compress`"],
    "migration-disks": ["`accept_instance` and `migrate_instance` with `copy_disks` in the policy"],
    "reset": ['`reboot_instance` with `mode="reset"`'],
}


def _claim(claim: hvcore.Claim) -> str:
    if claim.level is hvcore.ClaimLevel.CONDITIONAL:
        return f"conditional: {cell(claim.reason)}"
    return claim.level.value.replace("-", " ")


def commands() -> str:
    """The commands of ``hv`` and its exit statuses."""
    from hvcore.cli.exit_status import _STATUSES, EPILOG
    from hvcore.cli.root import COMMANDS

    lines = ["# hv", "", "`hv COMMAND --help` shows the arguments and options of each.", ""]
    lines += ["| command | |", "|---|---|"]
    lines += [f"| `hv {name}` | {cell(summary)} |" for name, (_, summary) in COMMANDS.items()]
    lines += ["", "## Exit status", "", "| status | meaning | errors |", "|---|---|---|"]
    ends = {status.value: [f"`{kind.__name__}`" for kind in kinds] for status, kinds in _STATUSES}
    for part in plain(EPILOG).removeprefix("Exit status: ").rstrip(".").split("; "):
        status, _, meaning = part.partition(" ")
        lines.append(f"| {status} | {cell(meaning)} | {', '.join(ends.get(int(status), [])) or ' '} |")
    lines += ["", "Every other error of hvcore ends in 1."]
    return page(lines)


def public_names() -> str:
    """Every name of ``hvcore.__all__``."""
    lines = ["# Public names", ""]
    lines += [
        "Everything `import hvcore` offers; the module is loaded when a name is first used.",
        "Other names of these modules are not public.",
        "",
        "| name | module | |",
        "|---|---|---|",
    ]
    for name in hvcore.__all__:
        value = getattr(hvcore, name)
        module = "hvcore" if name == "__version__" else hvcore._EXPORTS[name]
        lines.append(f"| `{name}` | `{module}` | {cell(_first_line(name, value, module))} |")
    return page(lines)


def _first_line(name: str, value: Any, module: str) -> str:
    if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
        return (inspect.getdoc(value) or "").split("\n\n")[0]
    return _WORDS.get(name) or _comment_of(name, module)


_WORDS = {
    "__version__": "Version of hvcore.",
    "hookspec": "Marks a function as the specification of a hook, for drivers with families of their own.",
}


def _comment_of(name: str, module: str) -> str:
    """The string below an assignment: how constants are documented."""
    source = inspect.getsource(importlib.import_module(module))
    found = re.search(rf'^{name}\b[^\n]*=.*?\n"""(.*?)"""', source, re.DOTALL | re.MULTILINE)
    return found[1].split("\n\n")[0] if found else ""


def page(lines: Iterable[str]) -> str:
    """A page from its lines, with the notice and without repeated blank lines."""
    text = "\n".join([_NOTICE, "", *lines]).strip() + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


_KINDS = ("added", "changed", "deprecated", "removed", "fixed", "contract")


def changelog() -> str:
    """``CHANGELOG.md`` with its part "Unreleased" put together from the fragments in ``changelog.d``."""
    root = REFERENCE.parents[1]
    fragments = sorted(path for path in (root / "changelog.d").glob("*.md") if path.name != "README.md")
    unknown = [path.name for path in fragments if path.suffixes[-2:-1] not in [[f".{kind}"] for kind in _KINDS]]
    if unknown:
        raise SystemExit(f"changelog.d: no kind of change in the name of {', '.join(unknown)}")
    lines = []
    for kind in _KINDS:
        said = [path.read_text().strip().replace("\n", "\n  ") for path in fragments if path.suffixes[-2] == f".{kind}"]
        lines += [f"### {kind.capitalize()}", "", *(f"- {text}" for text in said), ""] if said else []
    before, head, after = (root / "CHANGELOG.md").read_text().partition("## Unreleased\n")
    _, released, older = after.partition("\n## ")
    return before + head + "\n" + "\n".join(lines).rstrip() + "\n" + released + older


PAGES: dict[str, Callable[[], str]] = {
    "operations.md": operations,
    "parameters-kvm.md": lambda: parameters("kvm"),
    "parameters-fake.md": lambda: parameters("fake"),
    "settings-kvm.md": settings_kvm,
    "migration-policy.md": migration_policy,
    "schema-kvm.json": schema_kvm,
    "errors.md": errors,
    "capabilities.md": capabilities,
    "public-names.md": public_names,
    "hv.md": commands,
    "../../CHANGELOG.md": changelog,
}


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing, exit 1 when a page differs")
    check = parser.parse_args().check
    stale = []
    REFERENCE.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        path, text = (REFERENCE / name).resolve(), make()
        if not path.exists() or path.read_text() != text:
            stale.append(str(path.relative_to(REFERENCE.parents[1])))
            if not check:
                path.write_text(text)
    for name in stale:
        sys.stdout.write(f"{name} {'is not what it is made from' if check else 'written'}\n")
    if check and stale:
        sys.stdout.write("run: python docs/generate.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
