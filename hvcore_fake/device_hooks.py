"""`DeviceHooks`: the hooks of devices, sizes, consoles and counters, as `FakeDriver` has them."""

from __future__ import annotations

from hvcore import (
    BalloonResult,
    Console,
    Deadline,
    Device,
    HotplugResult,
    HotplugSupport,
    InstanceStats,
    PasswordResult,
    ResizeResult,
    hookimpl,
)
from hvcore_fake import consoles, hotplug, modifying, sizes
from hvcore_fake.saving_hooks import SavingHooks
from hvcore_fake.settings import FakeSettings
from hvcore_fake.statistics import statistics


class DeviceHooks(SavingHooks):
    """Changes running instances, and says what they have done."""

    _settings: FakeSettings

    @hookimpl
    def hv_get_instance_stats(self, name: str, deadline: Deadline) -> InstanceStats:
        """Count."""
        return self._run("get_instance_stats", name, deadline, lambda call: statistics(call.world, name))

    @hookimpl
    def hv_hotplug_supported(self, name: str, deadline: Deadline) -> HotplugSupport:
        """Say whether devices can be changed."""
        return self._run("hotplug_supported", name, deadline, lambda call: hotplug.support(call.world, name))

    @hookimpl
    def hv_verify_hotplug_support(self, name: str, action: str, device: Device, deadline: Deadline) -> HotplugSupport:
        """Say whether one can be changed."""
        foreign, support = self._settings.accept_foreign, hotplug.support_for
        return self._run(
            "verify_hotplug_support", name, deadline, lambda call: support(call.world, name, action, device, foreign)
        )

    @hookimpl
    def hv_hot_add_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        """Add."""
        foreign, add = self._settings.accept_foreign, hotplug.add
        return self._run("hot_add_device", name, deadline, lambda call: add(call, name, device, foreign))

    @hookimpl
    def hv_hot_del_device(self, name: str, device: str, force: bool, deadline: Deadline) -> HotplugResult:
        """Remove."""
        return self._run("hot_del_device", name, deadline, lambda call: hotplug.remove(call, name, device))

    @hookimpl
    def hv_hot_mod_device(self, name: str, device: Device, deadline: Deadline) -> HotplugResult:
        """Change."""
        foreign, modify = self._settings.accept_foreign, modifying.modify
        return self._run("hot_mod_device", name, deadline, lambda call: modify(call, name, device, foreign))

    @hookimpl
    def hv_resize_disk(self, name: str, device: str, size: int, deadline: Deadline) -> ResizeResult:
        """Grow a disk."""
        return self._run("resize_disk", name, deadline, lambda call: sizes.resize(call, name, device, size))

    @hookimpl
    def hv_balloon_instance_memory(self, name: str, memory: int, deadline: Deadline) -> BalloonResult:
        """Ask for memory."""
        return self._run("balloon_instance_memory", name, deadline, lambda call: sizes.balloon(call, name, memory))

    @hookimpl
    def hv_get_instance_console(self, name: str, kind: str | None, deadline: Deadline) -> Console:
        """Describe a console."""
        return self._run("get_instance_console", name, deadline, lambda call: consoles.console(call.world, name, kind))

    @hookimpl
    def hv_disconnect_console(self, name: str, kind: str | None, deadline: Deadline) -> Console:
        """Make whoever is attached go."""
        return self._run("disconnect_console", name, deadline, lambda call: consoles.disconnect(call, name, kind))

    @hookimpl
    def hv_set_console_password(
        self, name: str, kind: str, password: str, expires: float | None, deadline: Deadline
    ) -> PasswordResult:
        """Set a password."""
        set_password = consoles.set_password
        return self._run(
            "set_console_password", name, deadline, lambda call: set_password(call, name, kind, password, expires)
        )
