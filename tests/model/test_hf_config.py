from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from model.checkpoints import CONFIG
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.model.generation_config import hf_generation_config
from octavo.model.hf_config import hf_model_info

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.model.config import ModelInfo


def info(directory: Path, **changes: Any) -> ModelInfo:
    config = {k: v for k, v in (CONFIG | changes).items() if v is not ...}
    (directory / "config.json").write_text(json.dumps(config))
    return hf_model_info(directory)


def test_reads_the_shape(tmp_path: Path) -> None:
    model = info(tmp_path)
    assert model.architecture == "llama"
    assert (model.hidden_size, model.intermediate_size, model.num_layers) == (64, 96, 2)
    assert (model.num_q_heads, model.num_kv_heads, model.head_dim) == (4, 2, 16)
    assert (model.vocab_size, model.max_position_embeddings) == (300, 256)
    assert (model.qkv_bias, model.mlp_bias, model.tie_word_embeddings) == (False, False, False)
    assert (model.rope.theta, model.rope.rotary_dim, model.rope.scaling) == (10000.0, 16, "none")
    assert model.dtype == "float32"


@pytest.mark.parametrize(
    ("class_", "module"),
    [("LlamaConfig", "LlamaForCausalLM"), ("MistralConfig", "MistralForCausalLM"),
     ("Qwen2Config", "Qwen2ForCausalLM")],
)  # fmt: skip
def test_defaults_are_those_of_transformers(tmp_path: Path, class_: str, module: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "num_attention_heads": 16, "vocab_size": 300}  # fmt: skip
    reference = getattr(transformers, class_)(**sizes)
    window = {"sliding_window": None} if "Mistral" in class_ else {}
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": [module], **sizes, **window})
    )
    model = hf_model_info(tmp_path)
    if class_ != "Qwen2Config":  # its default of 32 key-value heads does not divide these
        assert model.num_kv_heads == reference.num_key_value_heads
    assert model.max_position_embeddings == reference.max_position_embeddings
    assert model.rms_norm_eps == reference.rms_norm_eps
    assert model.tie_word_embeddings == reference.tie_word_embeddings
    assert model.qkv_bias == getattr(reference, "attention_bias", class_ == "Qwen2Config")
    assert model.mlp_bias == getattr(reference, "mlp_bias", False)
    assert model.rope.theta == reference.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
        {"type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
         "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5, "truncate": False},
        {"rope_type": "default"},
    ],
)  # fmt: skip
def test_reads_rope_scaling_in_both_spellings(tmp_path: Path, rope: dict[str, Any]) -> None:
    old = info(tmp_path, rope_scaling=rope, rope_theta=5e5).rope
    new = info(tmp_path, rope_parameters={**rope, "rope_theta": 5e5}, rope_theta=...).rope
    assert old == new
    kind = rope.get("rope_type", rope.get("type"))
    assert old.scaling == {"default": "none"}.get(kind, kind)
    assert old.theta == 5e5
    for name, value in rope.items():
        if name not in {"rope_type", "type"}:
            assert getattr(old, name) == value


def test_yarn_takes_the_factor_from_the_context_where_it_is_absent(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}
    assert info(tmp_path, rope_scaling=rope).rope.factor == 4.0


def test_mistral_and_qwen2(tmp_path: Path) -> None:
    mistral = info(tmp_path, architectures=["MistralForCausalLM"], sliding_window=None)
    assert mistral.architecture == "mistral"
    wide = info(tmp_path, architectures=["MistralForCausalLM"], sliding_window=256)
    assert wide == mistral
    narrow = info(tmp_path, architectures=["MistralForCausalLM"], sliding_window=255)
    assert narrow.sliding_windows == (255, 255)
    default = info(tmp_path, architectures=["MistralForCausalLM"], max_position_embeddings=8192)
    assert default.sliding_windows == (4096, 4096)
    qwen = info(tmp_path, architectures=["Qwen2ForCausalLM"], sliding_window=8)
    assert qwen.qkv_bias
    assert not qwen.attention_output_bias
    assert qwen.sliding_windows == ()
    options = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}
    slides = info(tmp_path, architectures=["Qwen2ForCausalLM"], **options)
    assert slides.sliding_windows == (0, 8)


GEMMA = {
    "head_dim": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 16,
    "num_hidden_layers": 6,
    "sliding_window": 32,
}


def test_gemma_of_the_hub_before_layer_types(tmp_path: Path) -> None:
    two = info(tmp_path, architectures=["Gemma2ForCausalLM"], **GEMMA)
    assert two.sliding_windows == (32, 0, 32, 0, 32, 0)
    assert two.tie_word_embeddings
    assert (two.norm_offset, two.embedding_multiplier, two.attention_scale) == (1.0, 8.0, 0.25)
    old = {"rope_theta": 1e6, "rope_local_base_freq": 5e3, "sliding_window_pattern": 3}
    three = info(tmp_path, architectures=["Gemma3ForCausalLM"], **GEMMA, **old)
    assert three.sliding_windows == (32, 32, 0, 32, 32, 0)
    assert (three.rope.theta, three.local_rope.theta) == (1e6, 5e3)


def test_phi3_s_early_names_for_longrope(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    for name in ("su", "yarn", "longrope"):
        model = info(
            tmp_path,
            architectures=["Phi3ForCausalLM"],
            original_max_position_embeddings=64,
            rope_scaling={"type": name, **factors},
        )
        assert (model.rope.scaling, model.rope.factor) == ("longrope", 4.0)
        assert model.rope.original_max_position_embeddings == 64


def test_layers_without_rotation(tmp_path: Path) -> None:
    smollm3 = {"architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 5}
    assert info(tmp_path, **smollm3).rope_layers == (True, True, True, False, True)
    listed = info(tmp_path, **smollm3, no_rope_layers=[1, 0, 1, 0, 1])
    assert listed.rope_layers == (True, False, True, False, True)


def test_dense_layers_among_mixtures(tmp_path: Path) -> None:
    moe = {"architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 4, "num_experts": 8,
           "num_experts_per_tok": 2, "moe_intermediate_size": 24}  # fmt: skip
    assert info(tmp_path, **moe).expert_layers == ()
    mixed = info(tmp_path, **moe, decoder_sparse_step=2, mlp_only_layers=[3])
    assert mixed.expert_layers == (False, True, False, False)
    assert (mixed.num_experts, mixed.experts_per_token) == (8, 2)
    assert mixed.expert_intermediate_size == 24


def test_biases(tmp_path: Path) -> None:
    model = info(tmp_path, attention_bias=True, mlp_bias=True)
    assert model.qkv_bias
    assert model.attention_output_bias
    assert model.mlp_bias


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (
            {"architectures": ["BertModel"]},
            "architecture BertModel is not supported; supported are",
        ),
        ({"architectures": ...}, "architecture unknown"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "by 'bitsandbytes'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "gptq with 3 bits"),
        ({"quantization_config": {"quant_method": "awq", "version": "gemv"}}, "layout 'gemv'"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float"}}},
                }
            },
            "4-bit float weights",
        ),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "longrope needs 8 short and long factors",
        ),
        ({"rope_parameters": {"full_attention": {}}}, "differ by layer type"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (
            {
                "architectures": ["MistralForCausalLM"],
                "sliding_window": 8,
                "layer_types": ["chunked_attention", "full_attention"],
            },
            "layer_types chunked_attention",
        ),
        (
            {
                "architectures": ["OlmoeForCausalLM"],
                "num_experts": 4,
                "num_experts_per_tok": 5,
            },
            "5 of 4 experts",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope scaling 'dynamic'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8}},
            "original_max_position_embeddings",
        ),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor -1"),
        ({"num_key_value_heads": 3}, "cannot share 3"),
        ({"num_attention_heads": 5}, "does not split into 5 heads"),
        ({"num_attention_heads": 0}, "0 heads"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"vocab_size": 2**40}, "vocab_size is"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
        ({"head_dim": 15}, "15 rotary dimensions"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rope_theta": -1.0}, "rope theta"),
    ],
)
def test_names_what_is_not_supported(tmp_path: Path, changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        info(tmp_path, **changes)
    assert cause in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "64"}, r"Expected `int \| null`, got `str` - at `\$.hidden_size`"),
        ({"num_hidden_layers": True}, "got `bool`"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "rope_scaling: Expected"),
    ],
)
def test_names_damaged_fields(tmp_path: Path, changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(CheckpointError, match=cause) as caught:
        info(tmp_path, **changes)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a":' + "[" * 100_000, "\udcff"])
def test_refuses_what_is_no_json_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        hf_model_info(tmp_path)


def test_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: No such file"):
        hf_model_info(tmp_path)


def test_generation_config(tmp_path: Path) -> None:
    info(tmp_path, eos_token_id=2)
    assert hf_generation_config(tmp_path).eos_token_ids == (2,)
    more = {"eos_token_id": [9, 7, 9], "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(more))
    generation = hf_generation_config(tmp_path)
    assert generation.eos_token_ids == (7, 9)
    assert generation.bos_token_id == 1
    assert (generation.temperature, generation.top_p, generation.top_k) == (0.6, 0.9, None)
    (tmp_path / "generation_config.json").write_text('{"temperature": "hot"}')
    with pytest.raises(CheckpointError, match=r"generation_config.json"):
        hf_generation_config(tmp_path)
