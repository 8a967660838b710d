"""octavo.LLM on a small model with made-up weights."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers

from octavo import LLM, SamplingParams, grammar
from octavo.errors import (
    ConfigError,
    EngineError,
    InvalidRequestError,
    ModelNotFoundError,
    OctavoError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "eos_token_id": 1,
}
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
OPTIONS = {"load_format": "dummy", "num_gpu_blocks_override": 128, "seed": 3}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration, recommended sampling, and a tokenizer of bytes; no weights."""
    directory = tmp_path_factory.mktemp("model")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    recommended = {"temperature": 0.25, "top_p": 0.75, "top_k": 11}
    (directory / "generation_config.json").write_text(json.dumps(recommended))
    return directory


@pytest.fixture(scope="module")
def llm(directory: Path) -> Iterator[LLM]:
    with LLM(str(directory), **OPTIONS) as llm:
        yield llm


def test_one_text_gives_one_result(llm: LLM) -> None:
    (output,) = llm.generate("Hello", GREEDY)
    assert output.prompt == "Hello"
    assert len(output.prompt_token_ids) == 5
    (sequence,) = output.outputs
    assert sequence.index == 0
    assert len(sequence.token_ids) == 8
    assert sequence.text == llm.tokenizer.decode(sequence.token_ids)
    assert (sequence.finish_reason, sequence.stop_reason) == ("length", None)
    assert sequence.logprobs is None
    assert sequence.cumulative_logprob is None
    assert output.prompt_logprobs is None


def test_results_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = ["short", "a prompt that is somewhat longer than the first", [5, 6, 7]]
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (9, 3, 1)]
    outputs = llm.generate(prompts, params)
    assert [output.prompt for output in outputs] == [*prompts[:2], None]
    assert outputs[2].prompt_token_ids == [5, 6, 7]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [9, 3, 1]


def test_token_ids_are_the_same_as_their_text(llm: LLM) -> None:
    (by_text,) = llm.generate("Hello", GREEDY)
    (by_ids,) = llm.generate(llm.tokenizer.encode("Hello"), GREEDY)
    assert by_ids.outputs == by_text.outputs


def test_logprobs_belong_to_the_tokens(llm: LLM) -> None:
    params = SamplingParams(
        temperature=0.0, max_tokens=4, ignore_eos=True, logprobs=2, prompt_logprobs=0
    )
    (output,) = llm.generate("abc", params)
    (sequence,) = output.outputs
    assert sequence.logprobs is not None
    for token_id, logprobs in zip(sequence.token_ids, sequence.logprobs, strict=True):
        assert len(logprobs) == 2  # greedy: the chosen one is the most likely
        assert next(iter(logprobs)) == token_id
        assert logprobs[token_id].rank == 1
        assert logprobs[token_id].decoded_token == llm.tokenizer.decode([token_id])
    total = sum(
        each[id_].logprob for id_, each in zip(sequence.token_ids, sequence.logprobs, strict=True)
    )
    assert sequence.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs is not None
    first, *rest = output.prompt_logprobs
    assert first is None
    assert [list(each or {}) for each in rest] == [[id_] for id_ in output.prompt_token_ids[1:]]


def test_seeded_siblings_differ_and_repeat(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=9, max_tokens=12, ignore_eos=True)
    first, second = (llm.generate("abc", params)[0].outputs for _ in range(2))
    assert first == second
    assert [each.index for each in first] == [0, 1, 2]
    assert len({tuple(each.token_ids) for each in first}) == 3


def test_a_stop_string_cuts_the_text(llm: LLM) -> None:
    longer = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=0)
    (whole,) = llm.generate("stop", longer)[0].outputs
    stop = whole.text[5:7]
    begin = whole.text.index(stop)
    params = SamplingParams(
        temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=0, stop=(stop,)
    )
    (cut,) = llm.generate("stop", params)[0].outputs
    assert cut.text == whole.text[:begin]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert len(cut.logprobs or []) == len(cut.token_ids) < 40
    assert llm.stats()["num_running"] <= 1


def test_a_stop_string_ends_one_of_several_sequences(llm: LLM) -> None:
    params = SamplingParams(n=4, seed=2, max_tokens=30, ignore_eos=True, stop=("\n", "a", "e"))
    (output,) = llm.generate("abc", params)
    assert all(each.finish_reason in ("stop", "length") for each in output.outputs)
    assert not any(set(each.text) & set("\nae") for each in output.outputs)


def test_a_stop_token_is_named(llm: LLM) -> None:
    (free,) = llm.generate("xyz", GREEDY)[0].outputs
    stop = free.token_ids[3]
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, stop_token_ids=(stop,))
    (output,) = llm.generate("xyz", params)[0].outputs
    assert output.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)


def test_end_of_sequence_has_no_reason(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8, allowed_token_ids=(1,))
    (output,) = llm.generate("x", params)[0].outputs
    assert output.token_ids == [1]
    assert (output.text, output.finish_reason, output.stop_reason) == ("", "stop", None)


def test_defaults_come_from_the_model(llm: LLM) -> None:
    params = llm.default_sampling_params()
    assert (params.temperature, params.top_p, params.top_k) == (0.25, 0.75, 11)
    assert (params.min_p, params.max_tokens) == (0.0, 16)
    assert len(llm.generate("abc")[0].outputs[0].token_ids) <= 16


def test_chat_renders_the_template(llm: LLM) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    (output,) = llm.chat(chat, GREEDY)
    assert output.prompt == "[user]Hi[assistant]"
    several = llm.chat([chat, [{"role": "user", "content": "Ho"}]], GREEDY)
    assert several[0].outputs == output.outputs
    assert several[1].prompt == "[user]Ho[assistant]"
    (open_end,) = llm.chat(chat, GREEDY, add_generation_prompt=False)
    assert open_end.prompt == "[user]Hi"


def test_a_chat_may_take_the_whole_context(llm: LLM) -> None:
    (output,) = llm.chat([{"role": "user", "content": "Hi"}])
    sequence = output.outputs[0]
    length = len(output.prompt_token_ids) + len(sequence.token_ids)
    assert length == llm.max_model_len or sequence.finish_reason == "stop"


def test_a_repeated_prompt_hits_the_cache(llm: LLM) -> None:
    prompt = list(range(10, 60))
    llm.reset_prefix_cache()
    first, second = (llm.generate(prompt, GREEDY)[0] for _ in range(2))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 48)
    assert first.outputs == second.outputs
    llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY)[0].num_cached_tokens == 0


def test_no_prompts_give_no_results(llm: LLM) -> None:
    assert llm.generate([], GREEDY) == []


@pytest.mark.parametrize(
    ("prompts", "params"),
    [
        ([[1], []], GREEDY),
        ([[1], [258]], GREEDY),
        ([[1], [-1]], GREEDY),
        ([[1], [2**40]], GREEDY),
        ([[1], ["a"]], GREEDY),
        ([[1], list(range(2, 258)) * 2], GREEDY),
        ("abc", SamplingParams(top_p=1.5)),
        ("abc", SamplingParams(max_tokens=0)),
        ("abc", [GREEDY, GREEDY]),
    ],
)
def test_what_cannot_run_is_refused_and_leaves_nothing(llm: LLM, prompts: Any, params: Any) -> None:
    with pytest.raises(InvalidRequestError):
        llm.generate(prompts, params)
    assert llm.generate("ok", GREEDY)[0].outputs[0].finish_reason == "length"
    assert llm.stats()["num_running"] == 0


def test_more_prompts_than_slots(directory: Path) -> None:
    with LLM(str(directory), **OPTIONS, max_num_seqs=3, max_num_batched_tokens=16) as llm:
        outputs = llm.generate([f"prompt number {i}" for i in range(50)], GREEDY)
    assert [output.prompt for output in outputs] == [f"prompt number {i}" for i in range(50)]
    assert all(len(output.outputs[0].token_ids) == 8 for output in outputs)


def test_more_prompts_than_the_queue_holds(directory: Path) -> None:
    with LLM(str(directory), **OPTIONS, max_num_seqs=2, max_num_queued_reqs=3) as llm:
        outputs = llm.generate([f"prompt {i}" for i in range(30)], GREEDY)
    assert [output.prompt for output in outputs] == [f"prompt {i}" for i in range(30)]
    assert all(output.outputs[0].finish_reason == "length" for output in outputs)


def test_threads_take_turns(llm: LLM) -> None:
    expected = [output.outputs for output in llm.generate(["one", "two"], GREEDY)]
    results: dict[str, Any] = {}

    def run(prompt: str) -> None:
        results[prompt] = llm.generate(prompt, GREEDY)[0].outputs

    threads = [threading.Thread(target=run, args=(prompt,)) for prompt in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [results["one"], results["two"]] == expected


def test_progress_is_shown_on_request(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], GREEDY)
    assert capfd.readouterr().err == ""
    llm.generate(["a", "b"], GREEDY, progress=True)
    assert "Prompts" in capfd.readouterr().err


def test_a_closed_model_says_so(directory: Path) -> None:
    llm = LLM(str(directory), **OPTIONS)
    llm.close()
    llm.close()
    with pytest.raises(OctavoError):
        llm.generate("abc", GREEDY)


def test_an_interrupted_call_leaves_the_model_usable(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm, "_collect", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["abc"] * 4, SamplingParams(max_tokens=200, ignore_eos=True))
    assert len(llm.generate("abc", GREEDY)[0].outputs[0].token_ids) == 8


def test_options_are_those_of_serve(directory: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_length"):
        LLM(str(directory), max_model_length=12)
    with pytest.raises(ConfigError, match="--block-size"):
        LLM(str(directory), block_size=0)
    with pytest.raises(ModelNotFoundError):
        LLM("/no/such/model")


def test_an_engine_error_reaches_the_caller(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm._engine.__class__, "take_outputs", lambda *_: None)
    with pytest.raises(EngineError, match="shut down"):
        llm.generate("abc", GREEDY)


def test_structured_output(llm: LLM) -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}
    params = [
        SamplingParams(max_tokens=100, n=2, grammar=grammar.json_schema(schema)),
        SamplingParams(max_tokens=100, grammar=grammar.choice(["yes", "no"])),
        GREEDY,
    ]
    booleans, word, plain = llm.generate(["a", "b", "c"], params)
    for output in booleans.outputs:
        assert len(json.loads(output.text)) in (2, 3)
        assert output.finish_reason == "stop"
    assert word.outputs[0].text in ("yes", "no")
    assert plain.outputs[0].token_ids == llm.generate("c", GREEDY)[0].outputs[0].token_ids
    with pytest.raises(InvalidRequestError):
        llm.generate("a", SamplingParams(grammar=grammar.regex("(")))
    complex_ = SamplingParams(
        max_tokens=200, temperature=0.0, grammar=grammar.regex("(a{1,1000}){1,1000}")
    )
    with pytest.raises(InvalidRequestError, match="too complex"):
        llm.generate("a", complex_)
    assert llm.generate("b", params[1])[0].outputs[0].text in ("yes", "no")
