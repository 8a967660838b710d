"""Write a small checkpoint of every family with the log-probabilities of transformers.

    PYTHONPATH=python:tests python tests/gpu/write_families.py DIRECTORY

check_families.py compares. Sizes are those that GPU kernels take, weights are bfloat16, the
reference computes in float32.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from parity.reference import logprobs_of
from parity.tiny_families import FAMILIES
from parity.tiny_llama import SIZES, make, random_prompts, save

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

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


def main() -> None:
    """Write a directory a family."""
    root = Path(sys.argv[1])
    for name, family in FAMILIES.items():
        directory = root / name
        directory.mkdir(parents=True)
        model = make(gpu_config(family.config), deviation=DEVIATION).to(torch.bfloat16).float()
        save(model.to(torch.bfloat16), directory)
        model = model.float()
        lengths = LONG_LENGTHS if name == "phi3" else LENGTHS
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


main()
