"""Adapters against models whose weights they were merged into, in every family that has some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from model.adapter_files import random_adapter, write_adapter
from octavo import LLM, _core
from octavo.errors import ConfigError, InvalidRequestError, UnknownModelError
from octavo.model.config import to_core
from octavo.model.hf_config import hf_model_info
from parity.answers import DECODE, GREEDY, assert_equal, decoded
from parity.gguf_checkpoint import write_gguf
from parity.merge import merged
from parity.reference import Comparison
from parity.tiny_families import FAMILIES
from parity.tiny_llama import SIZES, random_prompts

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import transformers

    from parity.tiny_families import Family

    Tensors = dict[str, np.ndarray]

RANKS = (1, 4, 13)  # of the three adapters
SCALE = 4.0  # lora_alpha; each is divided by its rank


@pytest.fixture(scope="module")
def adapters(directory: Path) -> dict[str, Tensors]:
    """Of all projections, of attention alone, and of the last layer alone."""
    targets = _core.lora_targets(to_core(hf_model_info(directory)))
    parts = (
        targets,
        [each for each in targets if "self_attn" in each[0]],
        [each for each in targets if each[0].startswith(targets[-1][0][:15])],
    )
    return {
        f"adapter-{i}": random_adapter(part, rank, seed=i, scale=0.1)
        for i, (part, rank) in enumerate(zip(parts, RANKS, strict=True))
    }


@pytest.fixture(scope="module")
def modules(
    adapters: dict[str, Tensors], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, ...]:
    root = tmp_path_factory.mktemp("adapters")
    for (name, tensors), rank in zip(adapters.items(), RANKS, strict=True):
        write_adapter(root / name, tensors, rank, lora_alpha=SCALE)
    return tuple(f"{name}={root / name}" for name in adapters)


def load(path: Path, modules: tuple[str, ...], **options: Any) -> LLM:
    settings = {"dtype": "float32", "num_gpu_blocks_override": 96, "lora_modules": modules}
    return LLM(str(path), **{**settings, **options})


def test_each_equals_its_merged_model_in_a_mixed_batch(
    family: Family,
    model: transformers.PreTrainedModel,
    directory: Path,
    adapters: dict[str, Tensors],
    modules: tuple[str, ...],
) -> None:
    prompts = random_prompts(family.lengths, SIZES["vocab_size"])
    names = ["", *adapters]
    with load(directory, modules) as llm:
        outputs = llm.generate(
            prompts * len(names), GREEDY, adapter=[name for name in names for _ in prompts]
        )
        alone = {name: llm.generate(prompts[1], GREEDY, adapter=name) for name in names}
    for i, name in enumerate(names):
        part = outputs[i * len(prompts) : (i + 1) * len(prompts)]
        assert_equal(part, merged(model, adapters[name], SCALE) if name else model)
        assert decoded(part[1:2]) == decoded(alone[name])  # to the last bit
        assert not name or Comparison(part[-1], model).max_delta > 0.05


def test_preemption_chunks_and_prefix_hits_change_nothing(
    family: Family, directory: Path, modules: tuple[str, ...]
) -> None:
    prompts = random_prompts(family.lengths, SIZES["vocab_size"])
    names = [name.partition("=")[0] for name in modules]
    each = [names[i % len(names)] for i in range(len(prompts) * 3)]
    with load(directory, modules, enable_prefix_caching=False) as llm:
        expected = decoded(llm.generate(prompts * 3, DECODE, adapter=each))
    options = {"block_size": 8, "max_num_batched_tokens": 33, "max_num_seqs": 5}
    with load(directory, modules, num_gpu_blocks_override=33, **options) as llm:
        assert decoded(llm.generate(prompts * 3, DECODE, adapter=each)) == expected
        assert (llm.stats()["num_preemptions"] > 0) != family.gives_back
        again = llm.generate(prompts[-1], DECODE, adapter=each[-1])
        assert again[0].num_cached_tokens > 0
        assert decoded(again) == expected[-1:]
        assert llm.generate(prompts[-1], DECODE)[0].num_cached_tokens == 0


@pytest.mark.parametrize(
    "family", [name for name, each in FAMILIES.items() if each.gguf], indirect=True
)
def test_gguf_of_the_same_weights(
    family: Family,
    model: transformers.PreTrainedModel,
    directory: Path,
    adapters: dict[str, Tensors],
    modules: tuple[str, ...],
    tmp_path: Path,
) -> None:
    path = write_gguf(directory, tmp_path / "model.gguf", family)
    prompts = random_prompts(family.lengths, SIZES["vocab_size"])
    name, tensors = next(iter(adapters.items()))
    with load(path, modules) as llm:
        assert_equal(llm.generate(prompts, GREEDY, adapter=name), merged(model, tensors, SCALE))


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
def test_loaded_and_unloaded_at_run_time(directory: Path, modules: tuple[str, ...]) -> None:
    prompt = random_prompts((70,), SIZES["vocab_size"])[0]
    paths = [module.partition("=")[2] for module in modules]
    with load(directory, modules) as llm:
        expected = [decoded(llm.generate(prompt, DECODE, adapter=f"adapter-{i}")) for i in range(2)]
    with load(directory, (), enable_lora=True, max_loras=1) as llm:
        with pytest.raises(UnknownModelError):
            llm.generate(prompt, DECODE, adapter="x")
        for i in (0, 1, 0):  # the same name and slot; nothing of the one before is found
            llm.load_adapter("x", paths[i])
            output = llm.generate(prompt, DECODE, adapter="x")
            assert output[0].num_cached_tokens == 0
            assert decoded(output) == expected[i]
            with pytest.raises(InvalidRequestError, match="taken"):
                llm.load_adapter("y", paths[i])
            llm.unload_adapter("x")
        with pytest.raises(UnknownModelError):
            llm.generate(prompt, DECODE, adapter="x")


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
def test_faults_come_before_the_weights(directory: Path, modules: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="rank 13 is above --max-lora-rank 8"):
        load(directory, modules, max_lora_rank=8)
    with load(directory, ()) as llm, pytest.raises(ConfigError, match="--enable-lora"):
        llm.load_adapter("x", modules[0].partition("=")[2])


@pytest.mark.parametrize("family", ["qwen3"], indirect=True)
@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"quantization": "int8"}])
def test_other_weights(directory: Path, modules: tuple[str, ...], options: dict[str, str]) -> None:
    """A row is bitwise the same alone and among others, whatever the base weights are."""
    prompts = random_prompts((17, 70, 243), SIZES["vocab_size"])
    names = ["adapter-0", "", "adapter-1"]
    with load(directory, modules, enable_prefix_caching=False, **options) as llm:
        together = decoded(llm.generate(prompts, DECODE, adapter=names))
        alone = [
            decoded(llm.generate(prompt, DECODE, adapter=name))[0]
            for prompt, name in zip(prompts, names, strict=True)
        ]
    assert together == alone
