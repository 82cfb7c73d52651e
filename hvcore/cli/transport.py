"""How ``hv migrate`` reaches ``hv`` on the other host: a program whose standard input and output are the connection."""

from __future__ import annotations

import re
import shlex
import urllib.parse

import attrs
import click

_HOST = re.compile(r"[A-Za-z0-9._:-]{1,255}(%[A-Za-z0-9._-]{1,16})?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}")
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9]*[ =][^\n\r\0]*")
_SSH_FAILED = 255


@attrs.frozen(kw_only=True)
class Transport:
    """A way to the other host.

    Attributes:
        words: the program that is run here, with its first arguments.
        hv: the command over there, when a shell there is to find it; empty if it is among the words.
        title: what it is called in messages.
        failure: exit status by which the program says that it never got there; ``None`` if there is no such.
    """

    words: tuple[str, ...]
    hv: str
    title: str
    failure: int | None = None

    def command(self, arguments: tuple[str, ...]) -> list[str]:
        """The whole argument list, with what ``hv`` over there is called with."""
        return [*self.words, *((shlex.join((self.hv, *arguments)),) if self.hv else arguments)]


@attrs.frozen(kw_only=True)
class SshChoices:
    """What a user says to ssh besides where to go.

    Attributes:
        config: the configuration file it reads instead of the user's and the system's (``-F``); empty if not given.
        identities: files of private keys (``-i``).
        options: options as in such a file, ``NAME=VALUE`` (``-o``); they precede those of hvcore.
    """

    config: str = ""
    identities: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def read_transport(text: str, hv: str = "hv", ssh: SshChoices | None = None) -> Transport:
    """Read ``ssh://[USER@]HOST[:PORT]``, or ``exec:COMMAND``, a command that ends where ``hv`` takes its arguments.

    Args:
        text: what the user gave.
        hv: the command on a host that ssh reaches.
        ssh: what else ssh is told.

    Raises:
        click.BadParameter: it is neither, or says to ssh what it does not take.
    """
    choices = ssh or SshChoices()
    if text.startswith("exec:"):
        if choices != SshChoices():
            raise click.BadParameter("exec: runs no ssh, so there is nothing to tell it; give it in the command itself")
        try:
            words = tuple(shlex.split(text.removeprefix("exec:")))
        except ValueError as error:
            raise click.BadParameter(f"{text!r} cannot be split into words: {error}") from error
        if not words:
            raise click.BadParameter("exec: names no command")
        return Transport(words=words, hv="", title=words[0])
    return _ssh(text, hv, choices)


def _ssh(text: str, hv: str, choices: SshChoices) -> Transport:
    try:
        url = urllib.parse.urlsplit(text)
        host, user, port = url.hostname, url.username, url.port
    except ValueError as error:
        raise click.BadParameter(f"{text!r} cannot be read: {error}") from error
    rest = url.path.strip("/") or url.query or url.fragment or url.password
    if url.scheme != "ssh" or not host or rest:
        raise click.BadParameter(f"{text!r} is neither ssh://[USER@]HOST[:PORT] nor exec:COMMAND")
    # ssh takes what begins with a dash for an option, and ProxyCommand hands names to a shell.
    if not _HOST.fullmatch(host) or host.startswith("-"):
        raise click.BadParameter(f"{host!r} is no name of a host")
    if user is not None and not _USER.fullmatch(user):
        raise click.BadParameter(f"{user!r} is no name of a user")
    words = ["ssh", "-T"]
    words += ["-F", choices.config] if choices.config else []
    for identity in choices.identities:
        words += ["-i", identity]
    # Of an option that is given twice ssh takes the first.
    for option in (*choices.options, "ServerAliveInterval=5", "ServerAliveCountMax=3"):
        if not _OPTION.fullmatch(option):
            raise click.BadParameter(f"{option!r} is no option of ssh: NAME=VALUE", param_hint="--ssh-option")
        words += ["-o", option]
    words += ["-p", str(port)] if port else []
    words += ["-l", user] if user else []
    return Transport(words=(*words, "--", host), hv=hv, title=host, failure=_SSH_FAILED)
