"""Runs clang-tidy over the C++ sources of a compile_commands.json, two at a time.

A file whose own text, every header, the checks and clang-tidy are as they were when it last
passed is not checked again: its key lies in the cache folder.

    python tests/clang_tidy.py build/test-cpp/compile_commands.json
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKED = ("cpp", "cuda")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "octavo-clang-tidy"


def base_key() -> bytes:
    """What every file's result depends on besides its own text."""
    version = subprocess.run(["clang-tidy", "--version"], capture_output=True, check=True).stdout
    digest = hashlib.sha256(version + (ROOT / ".clang-tidy").read_bytes())
    for room in CHECKED:
        for header in sorted((ROOT / room).rglob("*.h")):
            digest.update(header.read_bytes())
    return digest.digest()


def sources(database: Path) -> list[Path]:
    """The rooms' own .cc files that the build compiles, largest first so that none ends late."""
    entries = {Path(entry["file"]) for entry in json.loads(database.read_text())}
    rooms = [ROOT / room for room in CHECKED]
    own = [f for f in entries if f.suffix == ".cc" and any(f.is_relative_to(r) for r in rooms)]
    return sorted(own, key=lambda file: -file.stat().st_size)


def check(file: Path, database: Path, base: bytes) -> str | None:
    """What clang-tidy has to say, or None when the file is clean."""
    key = CACHE / hashlib.sha256(base + str(file.name).encode() + file.read_bytes()).hexdigest()
    if key.exists():
        return None
    command = ["clang-tidy", "-quiet", "-p", str(database.parent), str(file)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        return result.stdout + result.stderr
    key.touch()
    return None


def main() -> int:
    database = Path(sys.argv[1]).resolve()
    CACHE.mkdir(parents=True, exist_ok=True)
    base = base_key()
    files = sources(database)
    complaints = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for future in as_completed([pool.submit(check, f, database, base) for f in files]):
            if (complaint := future.result()) is not None:
                complaints += 1
                print(complaint, end="", flush=True)
    print(f"clang-tidy: {len(files)} files, {complaints} with warnings")
    return 1 if complaints or not files else 0


if __name__ == "__main__":
    sys.exit(main())
