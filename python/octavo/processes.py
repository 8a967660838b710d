"""Small things that our processes share about being processes."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path

MEMORY_INTERVAL_S = 60.0  # between two calls of give_back_memory()

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(0)  # it ended before the line above


def raise_descriptor_limit() -> None:
    """Allow as many open files and connections as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def give_back_memory() -> None:
    """Return to the system what the C heap keeps of past peaks; takes about a millisecond.

    Without it a heap that serves small and large requests in turn grows by megabytes an hour while
    what is in use does not: freed pages in its middle stay resident.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def ignore_ending_signals() -> None:
    """Leave ending to the parent: a terminal or service manager signals every process at once."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def oom_kills() -> int:
    """Processes of this control group that the kernel has killed for want of memory."""
    for path in _memory_event_files():
        try:
            lines = path.read_text("ascii").splitlines()
        except OSError:
            continue
        for name, _, count in (line.partition(" ") for line in lines):
            if name == "oom_kill":
                return int(count)
    return 0


def _memory_event_files() -> list[Path]:
    """Of cgroup v2 and v1; a container may see its own group as the root."""
    root = Path("/sys/fs/cgroup")
    found = []
    for line in Path("/proc/self/cgroup").read_text("ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        group = path.lstrip("/")
        if controllers == "":
            found += [root / group / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            found += [root / "memory" / group / "memory.oom_control"]
            found += [root / "memory" / "memory.oom_control"]
    return found
