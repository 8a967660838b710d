"""POST /v1/chat/completions over a scripted engine."""

from __future__ import annotations

import pytest
from app_under_test import Server, events
from scripted_engine import candidates, say

from octavo.model.generation_config import GenerationConfig

ANSWER = "Voilà 😀 — 汉字 e\u0301 STOP more"


def text_of(chunks: list[dict], index: int = 0) -> str:
    deltas = [c["delta"] for e in chunks for c in e["choices"] if c["index"] == index]
    return "".join(delta.get("content", "") for delta in deltas)


def prompt_of(server: Server) -> str:
    return bytes(server.engine.last.prompt).decode()


def test_shape(server: Server) -> None:
    server.engine.script = say("Hi!")
    body = server.chat("hello").json
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    prompt = "user: hello\nassistant:\n"
    assert prompt_of(server) == prompt
    assert body["usage"]["prompt_tokens"] == len(prompt)
    assert body["usage"]["completion_tokens"] == 4


def test_fills_the_context_by_default(server: Server) -> None:
    server.chat("hello")
    submission = server.engine.last
    assert submission.sampling.max_tokens == 512 - len(submission.prompt)


def test_max_completion_tokens_wins(server: Server) -> None:
    server.chat(max_completion_tokens=3, max_tokens=9)
    assert server.engine.last.sampling.max_tokens == 3
    server.chat(max_tokens=9)
    assert server.engine.last.sampling.max_tokens == 9


def test_defaults_of_the_model() -> None:
    server = Server(GenerationConfig(temperature=0.6, top_k=20, top_p=0.95))
    server.chat(max_tokens=1)
    sampling = server.engine.last.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.6, 20, 0.95)
    server.chat(max_tokens=1, temperature=0, top_k=0, top_p=1)
    sampling = server.engine.last.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0, 0, 1)


def test_first_delta_has_the_role_and_last_the_reason(server: Server) -> None:
    server.engine.script = say("Hi", "Yo")
    chunks = events(server.chat(n=2, stream=True))
    for index in (0, 1):
        mine = [c for e in chunks for c in e["choices"] if c["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert not any("role" in c["delta"] for c in mine[1:])
        assert [c["finish_reason"] for c in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == "stop"
        assert text_of(chunks, index) == ("Hi", "Yo")[index]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


@pytest.mark.parametrize("step", [1, 4, 100])
@pytest.mark.parametrize("stop", [None, "STOP", ["\u0301", "zz"]])
def test_stream_equals_whole(server: Server, step: int, stop: object) -> None:
    server.engine.script, server.engine.tokens_per_step = say(ANSWER), step
    whole = server.chat(stop=stop, stream=False).json
    options = {"include_usage": True}
    chunks = events(server.chat(stop=stop, stream=True, stream_options=options))
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-1]["choices"] == []


class TestLogprobs:
    def test_shape(self, server: Server) -> None:
        server.engine.script = say("é")
        body = server.chat(logprobs=True, top_logprobs=2).json
        content = body["choices"][0]["logprobs"]["content"]
        assert [entry["bytes"] for entry in content] == [[0xC3], [0xA9], list(b"</s>")]
        expected = candidates(0xC3, 2)
        assert content[0]["logprob"] == expected[0][1]
        assert [top["logprob"] for top in content[0]["top_logprobs"]] == [
            logprob for _, logprob, _ in expected[1:]
        ]
        assert content[0]["top_logprobs"][0]["logprob"] == content[0]["logprob"]

    def test_without_top(self, server: Server) -> None:
        content = server.chat(logprobs=True, max_tokens=1).json["choices"][0]["logprobs"]["content"]
        assert content[0]["top_logprobs"] == []
        assert server.engine.last.sampling.logprobs == 0

    def test_off(self, server: Server) -> None:
        assert server.chat(logprobs=False, max_tokens=1).json["choices"][0]["logprobs"] is None
        assert server.engine.last.sampling.logprobs is None

    def test_stream_equals_whole(self, server: Server) -> None:
        server.engine.script, server.engine.tokens_per_step = say(ANSWER), 3
        options = {"logprobs": True, "top_logprobs": 1, "stop": "STOP"}
        whole = server.chat(**options).json["choices"][0]["logprobs"]["content"]
        chunks = events(server.chat(**options, stream=True))
        parts = [c["logprobs"]["content"] for e in chunks for c in e["choices"] if c["logprobs"]]
        assert [entry for part in parts for entry in part] == whole


class TestMessages:
    def test_text_parts(self, server: Server) -> None:
        parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
        server.chat(messages=[{"role": "user", "content": parts}], max_tokens=1)
        assert prompt_of(server) == "user: one\ntwo\nassistant:\n"

    def test_developer_is_system(self, server: Server) -> None:
        server.chat(messages=[{"role": "developer", "content": "x"}], max_tokens=1)
        assert prompt_of(server).startswith("system: x")

    def test_continue_the_last_message(self, server: Server) -> None:
        server.engine.script = say(" day")
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Good"}]
        options = {"continue_final_message": True, "add_generation_prompt": False}
        body = server.chat(messages=messages, **options).json
        assert prompt_of(server).endswith("assistant: Good")
        assert body["choices"][0]["message"]["content"] == " day"
        echoed = server.chat(messages=messages, echo=True, **options).json
        assert echoed["choices"][0]["message"]["content"] == "Good day"

    def test_template_variables(self, server: Server) -> None:
        server.chat(chat_template_kwargs={"enable_thinking": False}, max_tokens=1)
        assert "enable_thinking=False" in prompt_of(server)

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            ([], "messages"),
            (None, "messages"),
            ([{"content": "x"}], "messages[0].role"),
            ([{"role": "user", "content": 5}], "messages[0].content"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
                "messages[0].content[0].type",
            ),
            (
                [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
                "messages[0].content[0].type",
            ),
            ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
            ([{"role": "user", "content": "a\ud800".encode("utf-8", "surrogatepass")}], None),
        ],
    )
    def test_refused(self, server: Server, messages: object, param: str | None) -> None:
        if param is None:
            body = b'{"messages":[{"role":"user","content":"\\ud800"}]}'
            server.refusal("/v1/chat/completions", body)
        else:
            error = server.refusal("/v1/chat/completions", {"messages": messages})
            assert error["param"] == param


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs.a"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"max_tokens": 500}, "max_tokens"),
    ],
)
def test_refused(server: Server, options: dict, param: str) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], **options}
    assert server.refusal("/v1/chat/completions", body)["param"] == param
    assert not server.engine.submissions


def test_no_template() -> None:
    server = Server()
    server.model = type(server.model)(
        tokenizer=server.model.tokenizer,
        chat_template=None,
        eos_token_ids=(),
        defaults=server.model.defaults,
    )
    error = server.refusal("/v1/chat/completions", {"messages": [{"role": "user"}]})
    assert "no chat template" in error["message"]


def test_prompt_logprobs_and_token_ids(server: Server) -> None:
    body = server.chat("x", prompt_logprobs=0, return_token_ids=True, max_tokens=2).json
    assert len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]
    assert body["prompt_token_ids"] == server.engine.last.prompt
    assert len(body["choices"][0]["token_ids"]) == 2
    chunks = events(server.chat("x", return_token_ids=True, max_tokens=2, stream=True))
    assert chunks[0]["prompt_token_ids"] == server.engine.last.prompt


def test_long_conversation_is_too_long(server: Server) -> None:
    for size in (600, 100_000):
        body = {"messages": [{"role": "user", "content": "x" * size}]}
        error = server.refusal("/v1/chat/completions", body)
        assert error["param"] == "messages"
        assert error["code"] == "context_length_exceeded"
