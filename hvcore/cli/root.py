"""The ``hv`` group: its commands, each in a module that is imported when it is called, and how every error ends."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

import hvcore
from hvcore.cli.exit_status import EPILOG, ExitStatus, exit_status
from hvcore.cli.failure import show_bug, show_error, show_interrupt, show_traceback, show_usage_error
from hvcore.cli.log_lines import LogLines
from hvcore.cli.session import Session, global_options, session_of
from hvcore.errors import HypervisorError

COMMANDS: dict[str, tuple[str, str]] = {
    "plugins": ("hvcore.cli.plugins", "List the installed plugins, importing none of them."),
    "doctor": ("hvcore.cli.doctor", "Say what this host and its drivers can do, and what is wrong."),
    "params": ("hvcore.cli.parameters", "List what an instance file may set."),
    "check": ("hvcore.cli.planning", "Find everything that is wrong with an instance file, here."),
    "plan": ("hvcore.cli.planning", "Show what a start would do, touching nothing."),
    "start": ("hvcore.cli.lifecycle", "Start an instance from its file."),
    "stop": ("hvcore.cli.lifecycle", "Stop an instance and release everything it holds."),
    "reboot": ("hvcore.cli.lifecycle", "Restart an instance."),
    "pause": ("hvcore.cli.lifecycle", "Pause an instance."),
    "resume": ("hvcore.cli.lifecycle", "Let a paused instance run."),
    "save": ("hvcore.cli.saving", "Save memory and devices of an instance to a file, and stop it."),
    "restore": ("hvcore.cli.saving", "Start an instance from its file, where it was."),
    "snapshot": ("hvcore.cli.snapshots", "Keep what an instance is at a moment, and go back to it."),
    "backup": ("hvcore.cli.backup", "Copy the disks of a running instance, as they are at one moment."),
    "checkpoint": ("hvcore.cli.backup", "List and delete what incremental backups of a running instance begin from."),
    "list": ("hvcore.cli.queries", "List the instances on this host."),
    "info": ("hvcore.cli.queries", "Say what an instance is doing, or why it ended."),
    "stats": ("hvcore.cli.stats", "Show counters of a running instance: CPU time, memory, disks and NICs."),
    "console": ("hvcore.cli.console", "Attach to the console of an instance."),
    "screenshot": ("hvcore.cli.screenshot", "Take a picture of the display of an instance, as PNG."),
    "hotplug": ("hvcore.cli.hotplug", "Add, remove and change devices of a running instance."),
    "resize": ("hvcore.cli.resize", "Grow a disk of a running instance."),
    "balloon": ("hvcore.cli.resize", "Change how much memory the guest of a running instance has."),
    "apply": ("hvcore.cli.apply", "Apply what is different in an instance's file to the running instance."),
    "migrate": ("hvcore.cli.migrate", "Move a running instance to another host."),
    "tls": ("hvcore.cli.tls", "Make certificates with which hosts know each other when an instance moves."),
    "verify": ("hvcore.cli.queries", "Find where records of instances and reality differ."),
    "recover": ("hvcore.cli.lifecycle", "Put in order what a killed program left half done."),
    "cleanup": ("hvcore.cli.lifecycle", "Forget an instance that is not alive."),
    "conformance": (
        "hvcore.cli.conformance",
        "Test a driver or a family plugin against the contract, and print the verdict.",
    ),
    "new-plugin": ("hvcore.cli.new_plugin", "Make a package with a plugin that works, to be changed."),
    "demo": ("hvcore.cli.demo", "Build a small Linux guest and show its whole life, in half a minute."),
}
"""Every command: the module that holds it, and its summary.

The module has it under its name with ``_command``, and with ``_`` for ``-``.
"""


HIDDEN: dict[str, str] = {"migration-peer": "hvcore.cli.migration_peer"}
"""Commands that programs run, not people: the module of each."""

_SIGNALLED = 128
"""A greater exit status says which signal ended it."""


class RootGroup(click.Group):
    """Imports a command's module when the command is called, and turns every error into a message and a status."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The global options first."""
        return [*global_options(at_root=True), *super().get_params(ctx)]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name not in COMMANDS and cmd_name not in HIDDEN:
            return None
        module = importlib.import_module(HIDDEN.get(cmd_name) or COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is none of that name."""
        if not ctx.resilient_parsing and not args[0].startswith("-") and args[0] not in (*COMMANDS, *HIDDEN):
            import difflib  # only for mistakes

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else " 'hv --help' lists the commands."
            raise click.UsageError(f"There is no command {args[0]!r}.{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command and exit."""
        words = sys.argv[1:] if args is None else list(args)
        session = Session()
        session.as_json = "--json" in words
        extra.pop("standalone_mode", None)
        lines = LogLines(session)
        logging.getLogger().addHandler(lines)
        try:
            result = super().main(words, prog_name, standalone_mode=False, obj=session, **extra)
        except click.ClickException as error:
            show_usage_error(error, as_json=session.as_json)
            status = error.exit_code
        except HypervisorError as error:
            show_error(error, as_json=session.as_json)
            if session.debug:
                show_traceback(error)
            status = exit_status(error)
        except (click.Abort, KeyboardInterrupt) as error:
            show_interrupt(error, as_json=session.as_json)
            status = ExitStatus.INTERRUPTED
        except SystemExit as error:
            # Of a signal that asked for the end: what was half done has been undone.
            if isinstance(error.code, int) and error.code > _SIGNALLED:
                show_interrupt(error, as_json=session.as_json)
            raise
        except Exception as error:
            # Whatever it is: a person who runs a command gets a sentence, and the traceback on request.
            show_bug(error, as_json=session.as_json, debug=session.debug)
            status = ExitStatus.FAILED
        else:
            status = result if isinstance(result, int) else ExitStatus.DONE
        finally:
            logging.getLogger().removeHandler(lines)
        sys.exit(status)


class HvCommand(click.Command):
    """A command that takes the global options as well."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, then the global ones."""
        return [*super().get_params(ctx), *global_options(at_root=False)]


@click.group(cls=RootGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hvcore.__version__, "--version", prog_name="hv", message="hv %(version)s")
@click.pass_context
def hv(ctx: click.Context) -> None:
    """Drive virtual machines on this host, without libvirt and without a daemon.

    An instance is described in a TOML file: hv check FILE, hv plan FILE, hv start FILE. Wherever a command takes the
    NAME of an instance, its FILE will do. Global options may also follow the command.
    """
    session_of(ctx)
