"""POST /v1/completions over a scripted engine."""

from __future__ import annotations

import pytest
from app_under_test import BOS, Server, events
from falcon.testing import create_environ
from scripted_engine import EOS, candidates, say

from octavo.errors import EngineFaultError, QueueFullError

EMOJI = "naïve 😀 \u0065\u0301 汉字 👨‍👩‍👧 end"


def text_of(chunks: list[dict], index: int = 0) -> str:
    return "".join(c["text"] for e in chunks for c in e["choices"] if c["index"] == index)


def test_shape(server: Server) -> None:
    server.engine.cached_tokens = 4
    body = server.complete(max_tokens=3).json
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"
    assert body["model"] == "org/fake"
    assert body["choices"] == [
        {
            "index": 0,
            "text": "hel",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 3,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_default_is_16_tokens_or_what_fits(server: Server) -> None:
    assert server.complete().json["usage"]["completion_tokens"] == 16
    body = server.complete(prompt=[1] * 505).json
    assert body["usage"]["completion_tokens"] == 7


@pytest.mark.parametrize(
    ("prompt", "submitted"),
    [
        ("ab", [[BOS, 97, 98]]),
        (["a", "b"], [[BOS, 97], [BOS, 98]]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompt_forms(server: Server, prompt: object, submitted: list[list[int]]) -> None:
    body = server.complete(prompt=prompt, max_tokens=1).json
    assert [s.prompt for s in server.engine.submissions] == submitted
    assert [choice["index"] for choice in body["choices"]] == list(range(len(submitted)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, submitted))


def test_n_choices_of_each_prompt(server: Server) -> None:
    body = server.complete(prompt=["abc", "xyz"], n=2, max_tokens=2, add_special_tokens=False).json
    texts = [choice["text"] for choice in body["choices"]]
    assert texts == ["ab", "bc", "xy", "yz"]
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize("stop", [None, "汉", "👨‍👩", ["zzz", "e\u0301"], "d"])
def test_stream_equals_whole(server: Server, step: int, stop: object) -> None:
    server.engine.script = say(EMOJI)
    server.engine.tokens_per_step = step
    whole = server.complete(max_tokens=80, stop=stop).json["choices"][0]
    chunks = events(server.complete(max_tokens=80, stop=stop, stream=True))
    assert text_of(chunks) == whole["text"]
    assert not any("\ufffd" in c["text"] for e in chunks for c in e["choices"])
    last = chunks[-1]["choices"][0]
    assert last["finish_reason"] == whole["finish_reason"] == "stop"
    assert last["stop_reason"] == whole["stop_reason"]
    if stop is None:
        assert whole["text"] == EMOJI
    else:
        assert not any(s in whole["text"] for s in ([stop] if isinstance(stop, str) else stop))


def test_stop_string_aborts_the_engine_and_cuts_usage(server: Server) -> None:
    server.engine.script = say("one STOP two")
    body = server.complete(max_tokens=50, stop="STOP").json
    assert body["choices"][0]["text"] == "one "
    assert body["choices"][0]["stop_reason"] == "STOP"
    assert body["usage"]["completion_tokens"] == len("one STOP")
    assert server.engine.last.aborted


def test_stop_string_can_be_kept(server: Server) -> None:
    server.engine.script = say("one STOP two")
    body = server.complete(max_tokens=50, stop=["STOP"], include_stop_str_in_output=True).json
    assert body["choices"][0]["text"] == "one STOP"


def test_stop_token_ids(server: Server) -> None:
    server.engine.script = say("abcd")
    choice = server.complete(max_tokens=9, stop_token_ids=[99]).json["choices"][0]
    assert choice["text"] == "ab"
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == 99
    kept = server.complete(max_tokens=9, stop_token_ids=[99], include_stop_str_in_output=True)
    assert kept.json["choices"][0]["text"] == "abc"


def test_end_of_sequence_has_no_stop_reason(server: Server) -> None:
    server.engine.script = say("ab")
    choice = server.complete(max_tokens=9).json["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("ab", "stop", None)
    shown = server.complete(max_tokens=9, skip_special_tokens=False, ignore_eos=False).json
    assert shown["choices"][0]["text"] == "ab"


def test_streams_of_many_choices_are_whole(server: Server) -> None:
    chunks = events(server.complete(prompt=["abc", "xyz"], n=3, max_tokens=5, stream=True))
    whole = server.complete(prompt=["abc", "xyz"], n=3, max_tokens=5).json
    for choice in whole["choices"]:
        assert text_of(chunks, choice["index"]) == choice["text"]
    ends = [c["index"] for e in chunks for c in e["choices"] if c["finish_reason"]]
    assert sorted(ends) == list(range(6))


def test_usage_chunk(server: Server) -> None:
    chunks = events(
        server.complete(max_tokens=2, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert not any("usage" in chunk for chunk in chunks[:-1])


def test_usage_in_every_chunk(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(server.complete(max_tokens=3, stream=True, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 3]


def test_no_usage_unasked(server: Server) -> None:
    chunks = events(server.complete(max_tokens=2, stream=True))
    assert not any("usage" in chunk for chunk in chunks)


class TestLogprobs:
    def test_columns(self, server: Server) -> None:
        choice = server.complete(prompt=[65, 66, 70], max_tokens=3, logprobs=2).json["choices"][0]
        columns = choice["logprobs"]
        assert columns["tokens"] == ["A", "B", "F"]
        assert columns["text_offset"] == [0, 1, 2]
        expected = [candidates(id_, 2) for id_ in (65, 66, 70)]
        assert columns["token_logprobs"] == [each[0][1] for each in expected]
        assert [len(top) for top in columns["top_logprobs"]] == [2, 2, 3]

    def test_greedy_token_is_identical_in_both_places(self, server: Server) -> None:
        columns = server.complete(max_tokens=5, logprobs=1).json["choices"][0]["logprobs"]
        for token, logprob, top in zip(
            columns["tokens"], columns["token_logprobs"], columns["top_logprobs"], strict=True
        ):
            assert top[token] == logprob

    def test_zero_has_only_the_chosen(self, server: Server) -> None:
        columns = server.complete(max_tokens=2, logprobs=0).json["choices"][0]["logprobs"]
        assert [list(top) for top in columns["top_logprobs"]] == [["h"], ["e"]]

    def test_echo_as_evaluation_harnesses_need_it(self, server: Server) -> None:
        """Token ids in a batch, echo, logprobs 1, max_tokens 1."""
        prompts = [[65, 66, 67, 68], [70, 71, 72]]
        body = server.complete(prompt=prompts, max_tokens=1, logprobs=1, echo=True, temperature=0)
        for choice, prompt in zip(body.json["choices"], prompts, strict=True):
            columns = choice["logprobs"]
            assert columns["token_logprobs"][0] is None
            assert columns["top_logprobs"][0] is None
            assert len(columns["tokens"]) == len(prompt) + 1
            assert columns["tokens"][:-1] == [chr(id_) for id_ in prompt]
            assert choice["text"] == "".join(columns["tokens"])
            for id_, logprob, top in zip(
                prompt[1:],
                columns["token_logprobs"][1:-1],
                columns["top_logprobs"][1:-1],
                strict=True,
            ):
                assert logprob == candidates(id_, 1)[0][1]
                assert (logprob == max(top.values())) == (id_ % 7 != 0)
        assert server.engine.last.sampling.prompt_logprobs == 1

    def test_offsets_index_the_text(self, server: Server) -> None:
        server.engine.script = say(EMOJI)
        choice = server.complete(prompt="é!", echo=True, max_tokens=70, logprobs=0).json
        choice = choice["choices"][0]
        offsets, tokens = choice["logprobs"]["text_offset"], choice["logprobs"]["tokens"]
        for offset, token in zip(offsets, tokens, strict=True):
            if token.isascii() and not token.startswith("<"):
                assert choice["text"][offset] == token
        assert offsets == sorted(offsets)

    def test_stream_columns_equal_whole(self, server: Server) -> None:
        server.engine.script = say(EMOJI)
        options = {"max_tokens": 60, "logprobs": 1, "echo": True, "stop": "end"}
        whole = server.complete(**options).json["choices"][0]
        chunks = events(server.complete(**options, stream=True))
        for column, values in whole["logprobs"].items():
            parts = [c["logprobs"] for e in chunks for c in e["choices"] if c["logprobs"]]
            assert [value for part in parts for value in part[column]] == values
        assert text_of(chunks) == whole["text"]

    def test_prompt_logprobs(self, server: Server) -> None:
        body = server.complete(prompt=[65, 66], max_tokens=1, prompt_logprobs=1).json
        first, second = body["choices"][0]["prompt_logprobs"]
        assert first is None
        assert second["66"] == {
            "logprob": candidates(66, 1)[0][1],
            "rank": 1,
            "decoded_token": "B",
        }


class TestEcho:
    def test_text(self, server: Server) -> None:
        assert (
            server.complete(prompt="ab", echo=True, max_tokens=2)
            .json["choices"][0]["text"]
            .startswith("ab")
        )

    def test_token_ids_are_decoded(self, server: Server) -> None:
        ids = [BOS, *"😀".encode()]
        choice = server.complete(prompt=ids, echo=True, max_tokens=4).json["choices"][0]
        assert choice["text"] == "😀😀"

    def test_zero_tokens_scores_the_prompt(self, server: Server) -> None:
        body = server.complete(prompt=[65, 66], echo=True, max_tokens=0, logprobs=1).json
        choice = body["choices"][0]
        assert choice["text"] == "AB"
        assert choice["logprobs"]["tokens"] == ["A", "B"]
        assert body["usage"]["completion_tokens"] == 0
        assert body["usage"]["total_tokens"] == 2

    def test_once_in_a_stream(self, server: Server) -> None:
        chunks = events(server.complete(prompt="ab", echo=True, max_tokens=3, stream=True, n=2))
        assert text_of(chunks, 0).count("ab") >= 1
        whole = server.complete(prompt="ab", echo=True, max_tokens=3, n=2).json["choices"]
        assert [text_of(chunks, i) for i in (0, 1)] == [choice["text"] for choice in whole]


def test_token_ids_on_demand(server: Server) -> None:
    server.engine.script = say("ab")
    choice = server.complete(prompt="x", return_token_ids=True, max_tokens=9).json["choices"][0]
    assert choice["prompt_token_ids"] == [BOS, ord("x")]
    assert choice["token_ids"] == [97, 98, EOS]
    chunks = events(server.complete(prompt="x", return_token_ids=True, max_tokens=9, stream=True))
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert [id_ for choice in choices for id_ in choice["token_ids"]] == [97, 98, EOS]
    assert chunks[0]["choices"][0]["prompt_token_ids"] == [BOS, ord("x")]


def test_truncation_keeps_the_end(server: Server) -> None:
    server.complete(prompt=list(range(1, 101)), truncate_prompt_tokens=3, max_tokens=1)
    assert server.engine.last.prompt == [98, 99, 100]
    server.complete(prompt=[7] * 600, truncate_prompt_tokens=-1, max_tokens=12)
    assert len(server.engine.last.prompt) == 500


def test_engine_parameters(server: Server) -> None:
    server.complete(
        temperature=0.5, top_k=-1, top_p=0.9, min_p=0.1, repetition_penalty=1.2, seed=-2,
        presence_penalty=-1, frequency_penalty=2, logit_bias={"5": 200, "6": -1.5}, priority=-3,
        allowed_token_ids=[9, 9, 8], bad_words=["x"], min_tokens=2, max_tokens=4, ignore_eos=True,
        cache_salt="tenant",
    )  # fmt: skip
    sampling = server.engine.last.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 0, 0.9)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.2)
    assert sampling.seed == 2**64 - 2
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (-1, 2)
    assert sampling.logit_bias == {5: 100.0, 6: -1.5}
    assert sampling.allowed_token_ids == (9, 8)
    assert sampling.bad_words == ((120,), (32, 120))
    assert (sampling.min_tokens, sampling.max_tokens, sampling.ignore_eos) == (2, 4, True)
    assert server.engine.last.priority == -3
    assert 0 < server.engine.last.cache_salt < 2**64


def test_null_is_the_default(server: Server) -> None:
    names = ["temperature", "top_p", "n", "stop", "seed", "max_tokens", "logprobs", "echo"]
    names += ["stream", "stream_options", "logit_bias", "suffix", "user", "model", "best_of"]
    assert server.complete(**dict.fromkeys(names)).status_code == 200
    plain = Server()
    plain.complete()
    assert server.engine.last.sampling == plain.engine.last.sampling


class TestFaults:
    def test_refused_by_the_engine(self, server: Server) -> None:
        server.engine.fail_at, server.engine.failure = 0, QueueFullError("Too many requests wait.")
        for stream in (False, True):
            result = server.complete(stream=stream)
            assert result.status_code == 429
            assert result.headers["Retry-After"] == "1"
            assert result.json["error"]["code"] == "queue_full"

    def test_before_the_first_byte(self, server: Server) -> None:
        server.engine.fail_at, server.engine.failure = 0, EngineFaultError("The engine failed.")
        assert server.complete(stream=True).status_code == 500
        assert server.complete().status_code == 500

    def test_inside_a_stream(self, server: Server) -> None:
        server.engine.fail_at, server.engine.failure = 2, EngineFaultError("The engine failed.")
        chunks = events(server.complete(stream=True))
        assert chunks[-1] == {
            "error": {
                "message": "The engine failed.",
                "type": "internal_server_error",
                "param": None,
                "code": "engine_error",
            }
        }
        assert text_of(chunks[:-1]) == "he"

    def test_one_of_many_prompts_aborts_the_others(self, server: Server) -> None:
        server.engine.fail_at, server.engine.failure = 3, EngineFaultError("The engine failed.")
        assert server.complete(prompt=["a", "b", "c"]).status_code == 500
        assert all(s.aborted or s.stream.is_ended for s in server.engine.submissions)


def test_idle_streams_get_comments(server: Server) -> None:
    server.engine.idle_gets = 2
    text = server.complete(max_tokens=1, stream=True).text
    assert text.startswith(": keep-alive\n\n: keep-alive\n\ndata: ")


def test_closing_a_stream_aborts(server: Server) -> None:
    for read in (0, 1, 3):
        _close_after(server, read)
        assert server.engine.last.aborted


def _close_after(server: Server, read: int) -> None:
    body = b'{"prompt":"hello","stream":true}'
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    environ = create_environ("/v1/completions", method="POST", body=body, headers=headers)
    iterable = server.app(environ, lambda status, headers, exc_info=None: None)
    for _ in range(read):
        next(iter(iterable))
    iterable.close()


def test_a_stop_string_ends_its_choice_in_the_engine(server: Server) -> None:
    server.engine.script = say("one STOP two three four", "never ends here, so it says all")
    choices = server.complete(max_tokens=30, n=2, stop="STOP", temperature=1).json["choices"]
    assert [choice["text"] for choice in choices] == ["one ", "never ends here, so it says al"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "length"]
    assert server.engine.last.stopped == [0]
    assert not server.engine.last.aborted
