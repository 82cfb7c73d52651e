"""The program qemu-img, for images that tests begin with."""

from __future__ import annotations

import subprocess

_ATTEMPTS = 100


def qemu_img(*words: str) -> None:
    """Run it; what it says when it fails is in the error.

    The time it takes to try a passphrase is measured with the clock of the thread. That of a busy machine may not have
    moved meanwhile, and then the image is not made; the next attempt may succeed.
    """
    for _ in range(_ATTEMPTS):
        done = subprocess.run(["qemu-img", *words], capture_output=True, text=True, timeout=60, check=False)
        if "accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
