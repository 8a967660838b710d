"""/tokenize, /detokenize, /tokenizer_info."""

from __future__ import annotations

import pytest
from app_under_test import BOS, Server


def test_prompt(server: Server) -> None:
    body = server.post("/tokenize", {"prompt": "hi"}).json
    assert body == {
        "count": 3,
        "max_model_len": 512,
        "tokens": [BOS, 104, 105],
        "token_strs": None,
    }
    plain = server.post("/tokenize", {"prompt": "hi", "add_special_tokens": False}).json
    assert plain["tokens"] == [104, 105]


def test_token_strings(server: Server) -> None:
    body = server.post("/tokenize", {"prompt": "aé", "return_token_strs": True}).json
    assert body["token_strs"] == ["<s>", "a", "\ufffd", "\ufffd"]


def test_messages_as_chat_renders_them(server: Server) -> None:
    messages = [{"role": "user", "content": "hi"}]
    tokens = server.post("/tokenize", {"messages": messages}).json["tokens"]
    server.chat(messages=messages, max_tokens=1)
    assert tokens == server.engine.last.prompt


def test_long_text(server: Server) -> None:
    assert server.post("/tokenize", {"prompt": "x" * 100_000}).json["count"] == 100_001


@pytest.mark.parametrize(
    "body", [{}, {"prompt": "x", "messages": [{"role": "user"}]}, {"prompt": 5}, {"messages": []}]
)
def test_refused(server: Server, body: dict) -> None:
    server.refusal("/tokenize", body)


@pytest.mark.parametrize("text", ["", "hi", "naïve 😀 汉字", "a\x00b"])
def test_round_trip(server: Server, text: str) -> None:
    body = {"prompt": text, "add_special_tokens": False}
    tokens = server.post("/tokenize", body).json["tokens"]
    assert server.post("/detokenize", {"tokens": tokens}).json == {"prompt": text}


def test_detokenize_shows_special_tokens(server: Server) -> None:
    assert server.post("/detokenize", {"tokens": [BOS, 97]}).json == {"prompt": "<s>a"}


@pytest.mark.parametrize("tokens", [[260], [-1], [10**9], [10**30], ["x"], "x", None, [True]])
def test_detokenize_refuses(server: Server, tokens: object) -> None:
    assert server.refusal("/detokenize", {"tokens": tokens})["param"].startswith("tokens")


def test_info(server: Server) -> None:
    info = server.client.simulate_get("/tokenizer_info").json
    assert info["vocab_size"] == 260
    assert info["eos_token_ids"] == [257]
    assert (info["bos_token"], info["eos_token"], info["pad_token"]) == ("<s>", "</s>", None)
    assert info["chat_template"] == "{{ messages }}"
