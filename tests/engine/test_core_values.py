"""The extension's plain values, and the stub that describes them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import octavo
from octavo import _core
from octavo.config import ServeConfig
from octavo.engine.settings import quantize_to, to_core_sampling
from octavo.errors import ConfigError, InvalidRequestError
from octavo.sampling_params import SamplingParams

STUB = Path(octavo.__file__).with_name("_core.pyi")


def described() -> dict[str, set[str]]:
    """Public names of the stub: classes with their members, functions with none."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(STUB.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = set()
        elif isinstance(node, ast.ClassDef):
            fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
            methods = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
            found[node.name] = fields | methods - {"__init__"}
    return found


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_the_stub_describes_the_extension() -> None:
    stub = described()
    assert stub.keys() == public(_core)
    for name, members in stub.items():
        if members:
            assert members == public(getattr(_core, name)), name


def test_sampling_params_have_the_shells_defaults() -> None:
    shell = SamplingParams()
    core = _core.SamplingParams()
    shell_only = {"stop", "include_stop_str_in_output", "skip_special_tokens", "grammar"}
    for name in set(SamplingParams.__struct_fields__) - shell_only:
        value = getattr(shell, name)
        expected = list(value) if isinstance(value, tuple) else value
        assert getattr(core, name) == expected, name


def test_sampling_params_cross_the_boundary() -> None:
    shell = SamplingParams(
        n=2,
        temperature=0.5,
        top_k=7,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=0.5,
        logit_bias={3: -100.0, 9: 2.5},
        allowed_token_ids=(1, 2),
        bad_words=((1, 2), (3,)),
        seed=2**64 - 1,
        max_tokens=9,
        min_tokens=2,
        ignore_eos=True,
        stop_token_ids=(4, 5),
        logprobs=0,
        prompt_logprobs=20,
        stop=("end",),
    )
    core = to_core_sampling(shell)
    assert core.logit_bias == {3: -100.0, 9: 2.5}
    assert core.bad_words == [[1, 2], [3]]
    assert (core.seed, core.logprobs, core.prompt_logprobs) == (2**64 - 1, 0, 20)
    assert (core.n, core.top_k, core.min_tokens, core.ignore_eos) == (2, 7, 2, True)


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": "many"},
        {"max_tokens": 2**31},
        {"top_k": -(2**31) - 1},
        {"seed": -1},
        {"seed": 2**64},
        {"logit_bias": [1]},
        {"stop_token_ids": (2**40,)},
        {"bad_words": ((1.5,),)},
        {"temperature": None},
    ],
)
def test_what_does_not_fit_a_field_is_refused_by_name(field: dict[str, object]) -> None:
    (name,) = field
    with pytest.raises(InvalidRequestError, match=name):
        _core.SamplingParams(**field)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        _core.SamplingParams(temprature=1.0)
    with pytest.raises(AttributeError):
        _core.EngineConfig().max_model_length = 5  # type: ignore[attr-defined]


def test_enumerations_are_strings() -> None:
    config = _core.EngineConfig()
    assert (config.weight_dtype, config.scheduling_policy, config.device) == (
        "bfloat16",
        "fcfs",
        "cpu",
    )
    config.scheduling_policy = "priority"
    assert config.scheduling_policy == "priority"
    with pytest.raises(ConfigError, match="random"):
        config.scheduling_policy = "random"
    with pytest.raises(ConfigError, match="bf16"):
        config.weight_dtype = "bf16"
    rope = _core.RopeConfig()
    assert rope.scaling == "none"
    rope.scaling = "yarn"
    with pytest.raises(ConfigError, match="ntk"):
        rope.scaling = "ntk"


def test_configurations_keep_their_values() -> None:
    config = _core.EngineConfig()
    config.prefix_cache_secret = (2**64 - 1, 5)
    config.eos_token_ids = [1, 2]
    assert config.prefix_cache_secret == (2**64 - 1, 5)
    assert config.eos_token_ids == [1, 2]
    model = _core.ModelConfig()
    model.rope.theta = 5e5
    assert model.rope.theta == 5e5


def test_facts_about_the_machine() -> None:
    assert "avx2" in _core.cpu_features()
    assert _core.has_cuda() in (True, False)
    # The same wheel runs on machines without a GPU: there "auto" must mean the CPU.
    assert _core.num_cuda_devices() >= 0
    assert _core.num_cuda_devices() == 0 or Path("/dev/nvidia0").exists()


@pytest.mark.parametrize(("asked", "given"), [("keep", ""), ("none", ""), ("int4", "int4")])
def test_plain_weights_are_quantised_when_asked(asked: str, given: str) -> None:
    assert quantize_to(ServeConfig(quantization=asked), "cpu") == given


def test_a_gpu_quantises_to_fp8_only() -> None:
    assert quantize_to(ServeConfig(quantization="keep"), "cuda:0") == ""
    assert quantize_to(ServeConfig(quantization="fp8"), "cuda:0") == "fp8"
    with pytest.raises(ConfigError, match="--quantization int8 needs --device cpu"):
        quantize_to(ServeConfig(quantization="int8"), "cuda:0")
    with pytest.raises(ConfigError, match="--quantization fp8 needs --device cuda"):
        quantize_to(ServeConfig(quantization="fp8"), "cpu")
