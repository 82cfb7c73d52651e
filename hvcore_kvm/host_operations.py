"""Facts about the host, its verification, and what is done to all of it."""

from __future__ import annotations

import contextlib

import attrs

from hvcore import (
    AncillaryFiles,
    Deadline,
    Directories,
    FindingSet,
    InvalidParameters,
    NodeInfo,
    PolicyDenied,
    PowercycleResult,
    powercycle,
    read_node_info,
)
from hvcore_kvm import verification
from hvcore_kvm.capabilities import capabilities_of
from hvcore_kvm.kvm_device import probe_kvm
from hvcore_kvm.settings import KvmSettings
from hvcore_kvm.support import supported_values


class HostOperations:
    """The operations on the host of one loaded driver.

    Args:
        settings: of the driver.
        directories: of the driver.
    """

    def __init__(self, settings: KvmSettings, directories: Directories) -> None:
        self._settings = settings
        self._directories = directories

    def get_node_info(self, deadline: Deadline) -> NodeInfo:
        """Facts about this host."""
        facts = [("kvm", probe_kvm().level.value)]
        supported: dict[str, tuple[str, ...]] = {}
        with contextlib.suppress(InvalidParameters):
            found = capabilities_of(self._settings.qemu, self._directories.cache, deadline)
            facts.insert(0, ("qemu", found.version_text))
            supported = supported_values(found)
        return attrs.evolve(read_node_info(), hypervisor=tuple(facts), supported=supported)

    def verify(self, deadline: Deadline) -> FindingSet:
        """Whether this host can run instances well."""
        return FindingSet(verification.verify_host(self._settings, self._directories, deadline))

    def powercycle_node(self, deadline: Deadline) -> PowercycleResult:
        """Restart this host."""
        if not self._settings.allow_powercycle:
            raise PolicyDenied(
                "powercycle_node is not allowed here", hint="set allow_powercycle in the driver's settings"
            )
        return powercycle()

    def get_ancillary_files(self) -> AncillaryFiles:
        """None so far."""
        return AncillaryFiles()
