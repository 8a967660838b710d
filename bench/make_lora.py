"""Writes adapters (LoRA) with made-up weights for every projection of a model: speed, no download.

python bench/make_model.py llama-3.1-8b DIR
python bench/make_lora.py DIR ADAPTERS --count 8 --rank 16
octavo serve DIR --load-format dummy --lora-modules lora-0=ADAPTERS/lora-0 …
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from make_model import noise, write_shard

from octavo import _core
from octavo.config import ServeConfig, resolve_options
from octavo.model.config import to_core
from octavo.model.files import ModelFiles
from octavo.model.resolve import ResolvedModel, resolve_local


def write_adapters(model: str, directory: Path, count: int, rank: int) -> dict[str, Path]:
    """Directories of adapters in PEFT's form, by name."""
    found = resolve_local(model, resolve_options(ServeConfig(model=model)))
    if not isinstance(found, ResolvedModel):
        raise SystemExit(f"{model} is not on this machine: octavo pull {model}")
    shapes: dict[str, tuple[int, ...]] = {}
    for name, cols, rows in _core.lora_targets(to_core(ModelFiles(found).info())):
        shapes[f"base_model.model.{name}.lora_A.weight"] = (rank, cols)
        shapes[f"base_model.model.{name}.lora_B.weight"] = (rows, rank)
    source, paths = noise(), {}
    for index in range(count):
        name = f"lora-{index}"
        paths[name] = directory / name
        paths[name].mkdir(parents=True, exist_ok=True)
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
        (paths[name] / "adapter_config.json").write_text(json.dumps(settings))
        # Each begins at another place of the noise, so that no two are the same.
        begin = (index + 1) * 4096
        write_shard(shapes, paths[name] / "adapter_model.safetensors", source[begin:])
    return paths


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("model", help="directory, .gguf file or demo")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    write_adapters(arguments.model, arguments.directory, arguments.count, arguments.rank)


if __name__ == "__main__":
    main()
