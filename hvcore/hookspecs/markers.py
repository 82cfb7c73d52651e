"""The pluggy markers of hvcore, and the version of its hook specifications."""

import pluggy

PROJECT = "hvcore"

HOOK_API = 1
"""Version of the hook specifications; a driver names the one it was written for."""

hookspec = pluggy.HookspecMarker(PROJECT)

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a method of a driver or an extension as the implementation of the hook of the same name."""
