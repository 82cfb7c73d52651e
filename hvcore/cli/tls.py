"""``hv tls``: certificates for migrations."""

from __future__ import annotations

import click

from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session


@click.group(name="tls")
def tls_command() -> None:
    """Make certificates with which hosts know each other when an instance moves."""


@tls_command.command(cls=HvCommand, name="init")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--host", "hosts", multiple=True, required=True, metavar="NAME", help="Name or IP address. Repeatable.")
@click.option("--days", default=365, show_default=True, help="How long the certificates of the hosts are valid.")
@click.pass_obj
def init_command(session: Session, directory: str, hosts: tuple[str, ...], days: int) -> None:
    """Make a small certificate authority in DIR, and certificates for hosts below it.

    Again with other hosts, the authority that is there signs theirs too. Nothing is overwritten. Needs the extra "tls".
    """
    from hvcore.certificates import make_certificates

    made = make_certificates(directory, hosts, days=days)
    output = session.output()
    if output.as_json:
        output.document({"hosts": made})
        return
    rows = [(host.host, host.directory, host.subject, host.expires.isoformat()) for host in made]
    output.table(("host", "directory", "subject", "valid until"), rows)
    output.say("Copy the files of each host to /etc/pki/qemu there, and keep ca-key.pem where nobody else can read it.")
