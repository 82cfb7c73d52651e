"""What the global options of one ``hv`` call say, and loading the driver they name."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from hvcore.cli.output import Output

if TYPE_CHECKING:
    from hvcore.driver import Driver

DEFAULT_DRIVER = "kvm"


class Session:
    """The global options of one call; click hands it to every command.

    Attributes:
        driver_name: the driver that was named, ``None`` when none was.
        directories: settings of hvcore: where state, data and cache are kept.
        settings: settings of the driver that was named.
        as_json: machines read the output.
        color: colours are welcome.
        debug: show tracebacks.
    """

    def __init__(self) -> None:
        self.driver_name: str | None = None
        self.directories: dict[str, str] = {}
        self.settings: dict[str, Any] = {}
        self.as_json = False
        self.color = True
        self.debug = False

    def output(self) -> Output:
        """Standard output as the options want it."""
        return Output(as_json=self.as_json, color=self.color)

    def driver(self, name: str | None = None, settings: Mapping[str, Any] | None = None) -> Driver:
        """Load the driver; use it as a context manager.

        Args:
            name: instead of the one that was named. What was given with ``--setting`` is for that one alone, and a
                driver refuses settings it does not know.
            settings: on top of those that were given.

        Raises:
            LoadError: it cannot be loaded.
        """
        from hvcore.registry import load_driver

        named = self.driver_name or DEFAULT_DRIVER
        given = self.settings if name in (None, named) else {}
        return load_driver(name or named, {**self.directories, **given, **(settings or {})})


def session_of(context: click.Context) -> Session:
    """The session of a context; made at its first use."""
    root = context.find_root()
    if not isinstance(root.obj, Session):
        root.obj = Session()
    context.obj = root.obj
    return root.obj


def global_options(*, at_root: bool) -> list[click.Parameter]:
    """The global options: accepted before the command, with their environment variables, and after it."""
    options: list[click.Parameter] = [
        _option("--driver", _take_driver, at_root, "HV_DRIVER", "NAME", "Driver to use; kvm when not given."),
        *(
            _option(
                f"--{kind}-directory",
                _take_directory,
                at_root,
                f"HV_{kind.upper()}_DIRECTORY",
                "PATH",
                f"Where {what}.",
            )
            for kind, what in (
                ("state", "volatile state is kept"),
                ("data", "what outlives a boot of the host is kept"),
                ("cache", "what can be made again is kept"),
            )
        ),
        click.Option(
            ["--setting"],
            multiple=True,
            metavar="KEY=VALUE",
            callback=_take_settings,
            expose_value=False,
            hidden=not at_root,
            help="Setting of the driver: a TOML value, or text. Repeatable.",
        ),
    ]
    for name, help_text, hidden in (
        ("--json", "Print one JSON document.", False),
        ("--no-color", "Print no colours.", not at_root),
        ("--debug", "Show where an error came from.", not at_root),
    ):
        options.append(
            click.Option([name], is_flag=True, callback=_take_flag, expose_value=False, hidden=hidden, help=help_text)
        )
    return options


def _option(name: str, callback: Any, at_root: bool, variable: str, metavar: str, help_text: str) -> click.Option:
    # Only at the root is the environment read: there, it cannot overrule an option that was given.
    return click.Option(
        [name],
        callback=callback,
        expose_value=False,
        hidden=not at_root,
        envvar=variable if at_root else None,
        show_envvar=True,
        metavar=metavar,
        help=help_text,
    )


def _take_driver(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value:
        session_of(context).driver_name = value


def _take_directory(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value and option.name:
        session_of(context).directories[option.name] = os.path.abspath(value)


def _take_settings(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> None:
    for text in values:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", context, option)
        session_of(context).settings[key] = setting_value(value)


def _take_flag(context: click.Context, option: click.Parameter, value: bool) -> None:
    session = session_of(context)
    if not value:
        return
    if option.name == "json":
        session.as_json = True
    elif option.name == "debug":
        session.debug = True
    else:
        session.color = False


def setting_value(text: str) -> Any:
    """The value of a setting: a TOML value, or the text itself when it is none."""
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if set(read) == {"value"} else text
