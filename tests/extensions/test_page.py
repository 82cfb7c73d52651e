"""The page about extensions is true: its marked blocks are one program, which runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from hvcore.registry import EXTENSION_GROUP, available

PAGE = Path(__file__).resolve().parents[2] / "docs/extensions.md"


def test_the_marked_blocks_run(tmp_path: Path) -> None:
    """They leave nothing behind, and print what the rules on the page refuse."""
    blocks = re.findall(r"^<!-- run -->\n```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    command = [sys.executable, "-W", "error", "-c", "".join(blocks)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr
    assert "databases stay up" in done.stdout
    assert "1 may be" in done.stdout
    assert not list(tmp_path.iterdir())


def test_every_shipped_extension_is_on_the_page() -> None:
    """By the name it is loaded by."""
    shipped = {entry.name for entry in available(EXTENSION_GROUP) if entry.distribution == "hvcore"}
    assert set(re.findall(r"^\| `(\w+)` \| `hvcore\.\w+` \|", PAGE.read_text(), re.MULTILINE)) == shipped
