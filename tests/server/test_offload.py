"""What a thread raises reaches the caller, and nobody's terminal."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from gevent import monkey
monkey.patch_all()
from octavo.server.offload import offload

assert offload(divmod, 7, 2) == (3, 1)
try:
    offload(divmod, 1, 0)
except ZeroDivisionError as error:
    print("raised", error.args)
"""


def test_a_fault_is_raised_and_not_written_about() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("raised ")
    assert done.stderr == ""
