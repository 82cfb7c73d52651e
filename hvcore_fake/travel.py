"""What a modelled source tells its destination, and how that is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from hvcore import Cause, Finding, Instance, InstanceState, MigrationInfo, param, read_definition, structure
from hvcore_fake.copied import SentImage
from hvcore_fake.parameters import check_syntax
from hvcore_fake.record import Process

SCHEMA = 1
"""Version of the format of what a source tells its destination."""

RUN_STATES = ("running", "paused", "prelaunch", "io-error", "panicked")


@attrs.frozen(kw_only=True)
class Travel:
    """What a source tells its destination.

    Attributes:
        instance: the definition it runs with, as plain data.
        state: what its guest did when it was asked.
        cause: why.
        images: the images of its disks.
    """

    instance: Mapping[str, Any] = param(summary="The definition it runs with.")
    state: str = param(choices=RUN_STATES, summary="What its guest did.")
    cause: Cause = param(summary="Why.")
    images: tuple[SentImage, ...] = param(default=(), summary="The images of its disks.")


def describe(process: Process, definition: Instance) -> MigrationInfo:
    """What there is to tell of an instance."""
    sending = process.sending
    state, cause = process.state, process.cause
    if sending is not None and state in (InstanceState.MIGRATING, InstanceState.POSTMIGRATE):
        state, cause = sending.was, sending.was_because
    record = {
        "instance": attrs.asdict(definition),
        "state": state.value,
        "cause": cause.value,
        "images": [attrs.asdict(image) for image in _images(process)],
    }
    return MigrationInfo(schema=SCHEMA, driver="fake", instance=process.name, record=record)


def read_info(info: MigrationInfo, foreign: bool) -> tuple[Travel, Instance, list[Finding]]:
    """Check what a source sent, all of it; it is hostile until then."""
    findings = []
    if info.driver != "fake":
        message = f"comes from driver {info.driver[:60]!r}"
        findings.append(Finding(code="other-driver", path="driver", message=message, hint="use the same driver"))
    if info.schema != SCHEMA:
        message = f"has format {info.schema}; this version reads {SCHEMA}"
        findings.append(Finding(code="other-format", path="schema", message=message, hint="update this host"))
    travel, problems = structure(Travel, info.record, "record")
    instance, wrong = read_definition(travel.instance)
    if not problems:
        problems = [finding.below("record.instance") for finding in (*wrong, *check_syntax(instance, foreign).errors)]
        if instance.name != info.instance:
            message = f"is about {instance.name[:60]!r}, not {info.instance!r}"
            problems.append(Finding(code="other-instance", path="record.instance.name", message=message))
    return travel, instance, [*findings, *problems]


def _images(process: Process) -> Iterator[SentImage]:
    for backend in process.backends:
        device = process.device(backend.ident)
        if device is not None and device.kind == "disk" and backend.identity:
            yield SentImage(uuid=backend.ident, size=device.size, identity=backend.identity)
