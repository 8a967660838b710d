"""Adapters in the whole engine on a GPU: against merged weights, and against themselves.

Skipped where there is no CUDA device. The kernels have a program of their own, test_cuda.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig

from model.adapter_files import random_adapter, write_adapter
from octavo import LLM, SamplingParams, _core
from octavo.model.config import to_core
from octavo.model.hf_config import hf_model_info
from parity.merge import merged
from parity.reference import logprobs_of
from parity.tiny_llama import make, random_prompts, save

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.outputs import RequestOutput

if _core.num_cuda_devices() == 0:
    pytest.skip("there is no CUDA device", allow_module_level=True)

CONFIG = LlamaConfig(
    vocab_size=320,
    hidden_size=256,
    intermediate_size=448,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=1,
)
RANKS = (4, 16, 40)
ALPHA = 4.0
LENGTHS = (1, 17, 150, 400, 33, 64)
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=5)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, Any]]:
    root = tmp_path_factory.mktemp("adapted")
    model = make(CONFIG)
    directory = save(model, root / "base")
    targets = _core.lora_targets(to_core(hf_model_info(directory)))
    adapters = {}
    for seed, rank in enumerate(RANKS):
        adapters[f"rank-{rank}"] = random_adapter(targets, rank, seed, scale=0.05)
        write_adapter(root / f"rank-{rank}", adapters[f"rank-{rank}"], rank, lora_alpha=ALPHA)
    return directory, model, adapters


def load(directory: Path, **options: Any) -> LLM:
    settings = {
        "device": "cuda",
        "dtype": "bfloat16",
        "num_gpu_blocks_override": 800,
        "max_num_seqs": 32,
        "max_num_batched_tokens": 1024,
        "lora_modules": tuple(f"rank-{r}={directory.parent / f'rank-{r}'}" for r in RANKS),
        **options,
    }
    return LLM(str(directory), **settings)


def mixed(llm: LLM, adapters: dict[str, Any]) -> dict[str, list[RequestOutput]]:
    """Every prompt without an adapter and with each, all at once."""
    names = ["", *adapters]
    prompts = random_prompts(LENGTHS, CONFIG.vocab_size)
    outputs = llm.generate(
        prompts * len(names), GREEDY, adapter=[name for name in names for _ in prompts]
    )
    step = len(prompts)
    return {name: outputs[i * step : (i + 1) * step] for i, name in enumerate(names)}


def errors(outputs: list[RequestOutput], model: Any) -> tuple[float, float]:
    """Sums of the errors against float32: ours, and those of transformers in bfloat16."""
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    ours = theirs = 0.0
    for output in outputs:
        tokens = output.prompt_token_ids + output.outputs[0].token_ids
        exact, coarse = logprobs_of(model, tokens), logprobs_of(rounded, tokens)
        first = len(output.prompt_token_ids) - 1
        for position, logprobs in enumerate(output.outputs[0].logprobs or [], first):
            for id_, each in logprobs.items():
                expected = exact[position, id_].item()
                ours += abs(each.logprob - expected)
                theirs += abs(coarse[position, id_].item() - expected)
    return ours, theirs


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
def test_each_is_as_close_to_its_merged_model_as_bfloat16_is(
    eager: bool, files: tuple[Path, Any, dict[str, Any]]
) -> None:
    directory, model, adapters = files
    with load(directory, enforce_eager=eager) as llm:
        outputs = mixed(llm, adapters)
    for name, part in outputs.items():
        ours, theirs = errors(part, merged(model, adapters[name], ALPHA) if name else model)
        assert 0.0 < ours <= 1.5 * theirs, name
        if name:  # and far from the base model
            assert errors(part, model)[0] > 3 * ours, name


def test_a_row_is_the_same_alone_with_graphs_and_without(
    files: tuple[Path, Any, dict[str, Any]],
) -> None:
    directory, _, adapters = files
    answers = []
    for eager in (True, False):
        options = {"enforce_eager": eager, "batch_invariant": True, "enable_prefix_caching": False}
        with load(directory, **options) as llm:
            outputs = mixed(llm, adapters)
            answers.append({k: [o.outputs[0].token_ids for o in v] for k, v in outputs.items()})
            prompts = random_prompts(LENGTHS, CONFIG.vocab_size)
            for name, part in answers[-1].items():
                (alone,) = llm.generate([prompts[2]], GREEDY, adapter=name)
                assert alone.outputs[0].token_ids == part[2], name
    assert answers[0] == answers[1]


def test_adapters_come_and_go(files: tuple[Path, Any, dict[str, Any]]) -> None:
    directory, _, _ = files
    prompt = random_prompts((64,), CONFIG.vocab_size)[0]
    with load(directory, batch_invariant=True) as llm:
        wanted = {r: llm.generate(prompt, GREEDY, adapter=f"rank-{r}") for r in RANKS}
    options = {"lora_modules": (), "enable_lora": True, "max_loras": 1, "max_lora_rank": 64}
    with load(directory, batch_invariant=True, **options) as llm:
        for rank in (*RANKS, RANKS[0]):
            llm.load_adapter("x", str(directory.parent / f"rank-{rank}"))
            (output,) = llm.generate(prompt, GREEDY, adapter="x")
            assert output.num_cached_tokens == 0
            assert output.outputs[0].token_ids == wanted[rank][0].outputs[0].token_ids
            llm.unload_adapter("x")
