"""Stands between both ends of ``hv migrate`` and kills the far one at a message: OPERATION before|after COMMAND..."""

from __future__ import annotations

import json
import subprocess
import sys


def main(operation: str, when: str, command: list[str]) -> None:
    """Pass lines on until the message comes."""
    far = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert far.stdin is not None
    assert far.stdout is not None
    try:
        greeting = far.stdout.readline()
        if operation == "greeting":
            return
        sys.stdout.buffer.write(greeting)
        sys.stdout.buffer.flush()
        for line in sys.stdin.buffer:
            dying = json.loads(line)["operation"] == operation
            if dying and when == "before":
                return
            far.stdin.write(line)
            far.stdin.flush()
            answer = far.stdout.readline()
            if dying:
                return
            sys.stdout.buffer.write(answer)
            sys.stdout.buffer.flush()
    finally:
        far.kill()
        far.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
