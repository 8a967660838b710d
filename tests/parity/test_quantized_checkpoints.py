"""FP8, compressed-tensors, AWQ and GPTQ against the same codes, decoded in float32 by torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from transformers import LlamaConfig, MixtralConfig

from octavo import LLM, SamplingParams, _core
from octavo.model.config import to_core
from octavo.model.files import ModelFiles
from octavo.model.resolve import ResolvedModel
from parity.quantized_checkpoint import SCHEMES, WIDE, quantize
from parity.reference import Comparison
from parity.tiny_llama import SIZES, make, random_prompts

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

GREEDY = SamplingParams(
    temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=3, prompt_logprobs=3
)
# The blocks that codes may stay in; a scheme that is not here is decoded.
BLOCKS = {
    "fp8-tensor": "float8_rows",
    "fp8-scalar": "float8_rows",
    "fp8-channel": "float8_rows",
    "fp8-block": "float8_blocks",
    "int4-32-symmetric": "int4_g32",
    "int4-128-zeros": "int4_g128",
    "awq-32": "int4_g32",
    "awq-64": "int4_g64",
    "awq-128": "int4_g128",
    "gptq-32": "int4_g32",
    "gptq-64": "int4_g64",
    "gptq-v2-64": "int4_g64",
}
KEPT = frozenset(BLOCKS.values())


def deltas(directory: Path, model: PreTrainedModel, **options: Any) -> tuple[float, float, int]:
    """The greatest and the mean difference, and how many tokens are not the reference's."""
    prompts = random_prompts((3, 40, 90), SIZES["vocab_size"])
    with LLM(str(directory), dtype="float32", num_gpu_blocks_override=64, **options) as llm:
        compared = [Comparison(output, model) for output in llm.generate(prompts, GREEDY)]
    found = [delta for each in compared for delta in each.deltas]
    return max(found), sum(found) / len(found), sum(each.num_not_greedy for each in compared)


@pytest.mark.parametrize("name", SCHEMES)
def test_logprobs_equal_those_of_the_decoded_weights(name: str, tmp_path: Path) -> None:
    reference = quantize(make(LlamaConfig(**WIDE)), tmp_path, name)
    greatest, _, num_not_greedy = deltas(tmp_path, reference, quantization="none")
    assert greatest <= 1e-4
    assert num_not_greedy == 0


@pytest.mark.parametrize("name", ["fp8-block", "awq-64"])
def test_quantised_experts(name: str, tmp_path: Path) -> None:
    model = make(MixtralConfig(**WIDE, num_local_experts=4, sliding_window=None))
    reference = quantize(model, tmp_path, name)
    assert deltas(tmp_path, reference, quantization="none")[0] <= 1e-4


@pytest.mark.parametrize(
    "name", ["int4-32-symmetric", "int4-128-zeros", "awq-64", "gptq-32", "int8-channel-half"]
)
def test_codes_are_multiplied_as_they_are(name: str, tmp_path: Path) -> None:
    """By activations of int8, as those of GGUF files."""
    model = make(LlamaConfig(**WIDE), deviation=0.8)  # so that roundings do not grow
    greatest, mean, _ = deltas(tmp_path, quantize(model, tmp_path, name), quantization="keep")
    assert greatest > 1e-4
    assert mean <= 0.03


def test_codes_of_experts_are_multiplied_as_they_are(tmp_path: Path) -> None:
    config = MixtralConfig(**WIDE, num_local_experts=4, sliding_window=None)
    model = make(config, deviation=0.8)
    greatest, mean, _ = deltas(tmp_path, quantize(model, tmp_path, "awq-64"), quantization="keep")
    assert greatest > 1e-4
    assert mean <= 0.03


@pytest.mark.parametrize("name", SCHEMES)
def test_codes_stay_in_the_largest_blocks_that_hold_them(name: str, tmp_path: Path) -> None:
    quantize(make(LlamaConfig(**WIDE)), tmp_path, name)
    files = ModelFiles(ResolvedModel("tiny", "safetensors", tmp_path))
    types = {
        key: entry.dtype
        for key, entry in files.tensors(kept=KEPT).tensors.items()
        if key.endswith("_proj.weight")
    }
    assert set(types.values()) == {BLOCKS.get(name, "float32")}
    with_int8 = files.tensors(kept=KEPT | {"q8_0"}).tensors
    expected = "q8_0" if name == "int8-channel-half" else BLOCKS.get(name, "float32")
    assert with_int8["model.layers.0.mlp.up_proj.weight"].dtype == expected
    decoded = files.tensors().tensors
    assert {decoded[key].dtype for key in types} == {"float32"}


@pytest.mark.parametrize("name", ["awq-128", "fp8-block", "fp8-tensor", "int4-32-symmetric"])
def test_made_up_weights_have_the_types_of_the_checkpoint(name: str, tmp_path: Path) -> None:
    quantize(make(LlamaConfig(**WIDE)), tmp_path, name)
    files = ModelFiles(ResolvedModel("tiny", "safetensors", tmp_path))
    stored = files.tensors(kept=KEPT).tensors
    core, model = _core_of(files)
    expected = {key: e.dtype for key, e in stored.items() if key.endswith("_proj.weight")}
    assert files.dummy_types(_core.weight_specs(core, model), KEPT) == expected
    options = {"load_format": "dummy", "quantization": "keep", "num_gpu_blocks_override": 64}
    with LLM(str(tmp_path), **options) as llm:
        [output] = llm.generate([[5, 6, 7]], GREEDY)
    assert len(output.outputs[0].token_ids) == GREEDY.max_tokens


def _core_of(files: ModelFiles) -> tuple[_core.EngineConfig, _core.ModelConfig]:
    return _core.EngineConfig(), to_core(files.info())
