"""Fault 12: nothing can be written; the server starts and serves.

Full disks and closed pipes for the log are in tests/e2e/test_failure.py.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from e2e.serving import OCTAVO

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.serving import Launcher

# A mount namespace of its own, where everything but one small directory is read-only.
READ_ONLY = (
    "mount --make-rprivate / && mount -t tmpfs -o size=256k tmpfs {directory} && "
    "mount -o remount,bind,ro / && ! touch /octavo-probe 2>/dev/null"
)


def isolated(directory: Path, then: str) -> tuple[str, ...]:
    setup = READ_ONLY.format(directory=directory)
    return ("unshare", "-m", "sh", "-c", f'{setup} && {then} && exec "$@"', "sh")


@pytest.fixture
def writable(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    command = [*isolated(directory, ":"), "true"]
    try:
        result = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if result.returncode != 0:
        pytest.skip("this machine allows no mounts")
    return directory


def test_a_read_only_root(start: Launcher, writable: Path) -> None:
    command = (*isolated(writable, ":"), *OCTAVO)
    server = start(command=command, TMPDIR=str(writable), HOME="/nonexistent").wait_ready()
    assert [server.complete().status for _ in range(3)] == [200] * 3
    assert server.stop() == 0


def test_a_full_disk(start: Launcher, writable: Path) -> None:
    """What is there before leaves no room for more than the runtime directory's few bytes."""
    fill = f"head -c 190k /dev/zero > {writable}/fill"
    command = (*isolated(writable, fill), *OCTAVO)
    server = start(command=command, TMPDIR=str(writable)).wait_ready()
    assert [server.complete().status for _ in range(3)] == [200] * 3
    assert server.stop() == 0
