"""Memory of a process and everything below it, read from /proc."""

from __future__ import annotations

import contextlib
from pathlib import Path

_PROC = Path("/proc")


def descendants(root: int) -> list[int]:
    """`root` and every process below it that is alive now."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # The command's name is in parentheses and may hold anything, so cut after it.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, pending = [], [root]
    while pending:
        pid = pending.pop()
        found.append(pid)
        pending += children.get(pid, [])
    return found


def resident_bytes(root: int) -> int:
    """Resident memory of the tree; a page that n of them share counts once (PSS)."""
    total = 0
    for pid in descendants(root):
        with contextlib.suppress(OSError):
            for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total
