"""Memory that the C heap keeps is given back."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: what the heap of pytest keeps is not ours to know. Of many blocks every
# second one is freed, so that no end of the heap is free, only its middle.
_PROGRAM = """
import ctypes
from pathlib import Path
from octavo.processes import give_back_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(65536) for _ in range(800)]
for block in blocks:
    ctypes.memset(block, 1, 65536)
for block in blocks[::2]:
    libc.free(block)
before = resident()
give_back_memory()
print(before - resident())
"""


def test_freed_memory_in_the_middle_of_the_heap_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) > 15 << 20
