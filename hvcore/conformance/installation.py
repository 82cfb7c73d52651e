"""Distributions that are installed for the length of a check: packages with plugins that nobody else has."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import textwrap
from types import TracebackType
from typing import Self


class Installation:
    """A directory of distributions, on Python's path while it is entered.

    Args:
        directory: where they are written; it need not be there.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._modules: list[str] = []

    def offer(self, distribution: str, module: str, source: str, group: str, name: str, value: str) -> None:
        """Install a distribution, of version 1.0, with one module and one entry point.

        Args:
            distribution: its name.
            module: name of the module.
            source: text of the module.
            group: entry-point group.
            name: name of the entry point.
            value: what it refers to, in the module: ``make``.
        """
        information = os.path.join(self._directory, f"{distribution.replace('-', '_')}-1.0.dist-info")
        os.makedirs(information, exist_ok=True)
        texts = {
            os.path.join(information, "METADATA"): f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n",
            os.path.join(information, "entry_points.txt"): f"[{group}]\n{name} = {module}:{value}\n",
            os.path.join(self._directory, f"{module}.py"): textwrap.dedent(source),
        }
        for path, text in texts.items():
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        self._modules.append(module)
        importlib.invalidate_caches()

    def __enter__(self) -> Self:
        os.makedirs(self._directory, exist_ok=True)
        sys.path.insert(0, self._directory)
        importlib.invalidate_caches()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(ValueError):
            sys.path.remove(self._directory)
        for module in self._modules:
            sys.modules.pop(module, None)
        sys.path_importer_cache.pop(self._directory, None)
        importlib.invalidate_caches()
