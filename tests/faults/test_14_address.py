"""Fault 14: an address that may not be bound is found before weights load.

Taken ports, bad certificates and double starts are in tests/e2e/test_startup.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from octavo.cli.main import main
sys.exit(main(["serve", sys.argv[1], "--port", "80", "--load-format", "dummy"]))
"""


def first_privileged_port() -> int:
    return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())


@pytest.mark.skipif(first_privileged_port() <= 80, reason="anybody may bind port 80 here")
def test_a_privileged_port_ends_with_6(tiny_model: Path) -> None:
    command = [sys.executable, "-P", "-c", PROGRAM, str(tiny_model)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("there is no setpriv here")
        drop = ["setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service"]
        command = [*drop, *command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 6, result.stderr
    last = result.stderr.splitlines()[-1]
    assert "80" in last
    assert "Loading model" not in result.stderr
