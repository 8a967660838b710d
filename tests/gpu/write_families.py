"""Write a small checkpoint of every family and of every way to quantise, with log-probabilities.

    PYTHONPATH=python:tests python tests/gpu/write_families.py DIRECTORY

check_families.py compares. Sizes are those that GPU kernels take, weights are bfloat16 or codes,
the reference is that of transformers in float32, on the values that the codes stand for.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig

from parity.quantized_checkpoint import SCHEMES, WIDE, quantize
from parity.reference import logprobs_of
from parity.tiny_families import FAMILIES
from parity.tiny_llama import SIZES, make, random_prompts, save

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

HIDDEN, HEADS, HEAD_DIM = 128, 4, 64
DEVIATION = 0.8  # of weights; less than in float32, so that roundings do not grow
LENGTHS = (1, 17, 70, 200)
LONG_LENGTHS = (65, 120, 200)


def gpu_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same options with sizes that are multiples of 64."""
    sized = copy.deepcopy(config)
    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        # Phi-3 has no head_dim of its own.
        "num_attention_heads": HIDDEN // HEAD_DIM if config.model_type == "phi3" else HEADS,
        "head_dim": 256 if config.model_type.startswith("gemma") else HEAD_DIM,
        "query_pre_attn_scalar": 256,
        "num_experts": 8,
        "num_local_experts": 8,
    }
    for name, value in sizes.items():
        if getattr(config, name, None) is not None:
            setattr(sized, name, value)
    for name in ("short_factor", "long_factor"):
        if name in (sized.rope_parameters or {}):
            sized.rope_parameters[name] = [1.0 + 0.2 * i for i in range(HEAD_DIM // 4)]
    return sized


def write_reference(model: PreTrainedModel, lengths: tuple[int, ...], directory: Path) -> None:
    """Prompts, and the log-probability of each of their tokens but the first."""
    cases = []
    for prompt in random_prompts(lengths, SIZES["vocab_size"]):
        expected = logprobs_of(model, prompt)
        cases.append(
            {
                "prompt": prompt,
                "logprobs": [expected[i, id_].item() for i, id_ in enumerate(prompt[1:])],
            }
        )
    (directory / "reference.json").write_text(json.dumps(cases))


def rounded(config: PreTrainedConfig) -> PreTrainedModel:
    """A model whose weights are values of bfloat16."""
    return make(config, deviation=DEVIATION).to(torch.bfloat16).float()


def main() -> None:
    """Write a directory a family, and one a scheme."""
    root = Path(sys.argv[1])
    for name, family in FAMILIES.items():
        directory = root / name
        directory.mkdir(parents=True)
        model = rounded(gpu_config(family.config))
        save(model.to(torch.bfloat16), directory)
        lengths = LONG_LENGTHS if name == "phi3" else LENGTHS
        write_reference(model.float(), lengths, directory)
    for name in SCHEMES:
        directory = root / name
        directory.mkdir(parents=True)
        reference = quantize(rounded(LlamaConfig(**WIDE)), directory, name)
        write_reference(reference, LENGTHS, directory)


main()
