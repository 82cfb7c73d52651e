"""``hv screenshot``: the picture on an instance's display, in a file."""

from __future__ import annotations

import sys

import click

from hvcore.cli.instance_file import instance_name, name_argument
from hvcore.cli.root import HvCommand
from hvcore.cli.session import Session


@click.command(cls=HvCommand)
@name_argument
@click.option(
    "-o",
    "--output",
    "target",
    type=click.Path(dir_okay=False, writable=True, allow_dash=True),
    help="File to write; NAME.png when not given, - for standard output.",
)
@click.pass_obj
def screenshot_command(session: Session, name: str, target: str | None) -> None:
    """Take a picture of the display of an instance, as PNG."""
    instance = instance_name(name)
    with session.driver() as driver:
        picture = driver.screenshot(instance)
    if target == "-":
        sys.stdout.buffer.write(picture.data)
        return
    path = target or f"{instance}.png"
    with open(path, "wb") as file:
        file.write(picture.data)
    output = session.output()
    if output.as_json:
        output.document({"instance": instance, "file": path, "bytes": len(picture.data)})
    else:
        output.say(f"{path}: {len(picture.data)} bytes")
