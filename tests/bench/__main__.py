"""Benchmarks, ``python -m tests.bench``: everything beside its yardstick in one run, nothing asserted."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator

from tests.bench import (
    beside_libvirt,
    families,
    hotplug,
    libvirt_domain,
    lifecycle,
    migration,
    overhead,
    processes,
    scale,
)
from tests.bench.host import host
from tests.bench.rows import Row, table

_QEMU = "qemu-system-x86_64"


def measure(*, quick: bool, libvirt: bool) -> Iterator[Row]:
    """Everything there is to measure here, or what is measured beside libvirt."""
    if libvirt:
        if lack := libvirt_domain.lacking():
            sys.stderr.write(f"not measured: attaching and detaching beside libvirt: {lack}\n")
            return
        with host() as found:
            yield from beside_libvirt.measure(found, quick=quick)
        return
    yield from overhead.measure(quick=quick)
    yield from processes.measure(quick=quick)
    if shutil.which(_QEMU) is None:
        sys.stderr.write(f"not measured: starting, stopping, listing: {_QEMU} is not installed\n")
        return
    with host() as found:
        yield from lifecycle.measure(found, quick=quick)
        yield from families.measure(found, quick=quick)
        yield from hotplug.measure(found, quick=quick)
        yield from migration.measure(found, quick=quick)
        yield from scale.measure(found, quick=quick)


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples and few instances: does it work at all?")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--libvirt", action="store_true", help="only what is measured beside libvirt")
    options = parser.parse_args()
    rows = []
    for row in measure(quick=options.quick, libvirt=options.libvirt):
        rows.append(row)
        sys.stderr.write(f"measured: {row.name}\n")
    document = json.dumps({"rows": [row.as_dict() for row in rows]}, indent=2)
    sys.stdout.write(f"{document if options.json else table(rows)}\n")


if __name__ == "__main__":
    main()
