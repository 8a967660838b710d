"""Fuzz one target with atheris: run.py TARGET [libFuzzer's flags].

New inputs go to build/fuzz/TARGET; what is kept in corpus/ is where it starts from.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def main() -> None:
    """Run libFuzzer; it ends the process."""
    atheris = importlib.import_module("atheris")
    name, flags = sys.argv[1], sys.argv[2:]
    sys.path.insert(0, str(HERE.parent))
    with atheris.instrument_imports(include=["octavo"]):
        targets = importlib.import_module("fuzz.targets")
    from fuzz.mutate import mutate_json  # noqa: PLC0415 - its folder has just been added

    found = ROOT / "build" / "fuzz-found" / name
    found.mkdir(parents=True, exist_ok=True)
    arguments = [sys.argv[0], *flags, f"-artifact_prefix={found}-", str(found)]
    options = {}
    if name in targets.TAKES_JSON:

        def mutate_bytes(data: bytes, size: int) -> bytes:
            # Looked up when it is called: Fuzz() puts another one there.
            return bytes(atheris.Mutate(data, size))

        options["custom_mutator"] = partial(mutate_json, otherwise=mutate_bytes)
    atheris.Setup([*arguments, str(HERE / "corpus" / name)], targets.TARGETS[name], **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
