"""Every field of completions and chat has an effect on the engine or the answer, or is refused.

A field that nobody has thought of fails test_every_field_is_here.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from app_under_test import Server
from scripted_engine import EOS

from octavo.server.schemas.chat import ChatRequest
from octavo.server.schemas.completions import CompletionRequest

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALLS = '<tool_call>{"name": "f", "arguments": {}}</tool_call>' * 2
TEXT = "<think>Hm.</think>Hello, hello 😀."
LAST = {"add_generation_prompt": False}

# Name of a field, its value, and the fields beside which it has its effect.
COMMON: list[tuple[str, Any, dict[str, Any]]] = [
    ("n", 2, {}),
    ("temperature", 0.5, {}),
    ("top_p", 0.5, {}),
    ("top_k", 5, {}),
    ("min_p", 0.1, {}),
    ("repetition_penalty", 1.1, {}),
    ("presence_penalty", 0.5, {}),
    ("frequency_penalty", 0.5, {}),
    ("seed", 7, {}),
    ("logit_bias", {"5": 1}, {}),
    ("allowed_token_ids", [5], {}),
    ("bad_words", ["x"], {}),
    ("max_tokens", 3, {}),
    ("min_tokens", 2, {}),
    ("ignore_eos", True, {}),
    ("stop", "lo", {}),
    ("stop", ["zz", "lo"], {}),
    ("stop_token_ids", [ord("l")], {}),
    ("include_stop_str_in_output", True, {"stop": ["lo"]}),
    ("skip_special_tokens", False, {}),
    ("prompt_logprobs", 1, {}),
    ("return_token_ids", True, {}),
    ("truncate_prompt_tokens", 3, {}),
    ("priority", 5, {}),
    ("cache_salt", "tenant", {}),
    ("stream", True, {}),
    ("stream_options", {"include_usage": True}, {"stream": True}),
    (
        "stream_options",
        {"include_usage": True, "continuous_usage_stats": True},
        {"stream": True, "stream_options": {"include_usage": True}},
    ),
    ("response_format", {"type": "json_object"}, {}),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": {}}}, {}),
    ("structured_outputs", {"json": {"type": "integer"}}, {}),
    ("structured_outputs", {"regex": "a+"}, {}),
    ("structured_outputs", {"choice": ["yes", "no"]}, {}),
    ("structured_outputs", {"grammar": 'start: "a"'}, {}),
    ("structured_outputs", {"json_object": True}, {}),
]
COMPLETIONS = [
    ("prompt", "other", {}),
    ("logprobs", 1, {}),
    ("echo", True, {}),
    ("add_special_tokens", False, {}),
]
CHAT = [
    ("messages", [{"role": "user", "content": "other"}], {}),
    ("max_completion_tokens", 3, {}),
    ("max_completion_tokens", 3, {"max_tokens": 5}),
    ("logprobs", True, {}),
    ("top_logprobs", 2, {"logprobs": True}),
    ("add_special_tokens", True, {}),
    ("add_generation_prompt", False, {}),
    ("continue_final_message", True, LAST),
    ("echo", True, LAST),
    ("chat_template_kwargs", {"a": 1}, {}),
    ("tools", [TOOL], {}),
    ("tool_choice", "none", {"tools": [TOOL]}),
    ("tool_choice", "required", {"tools": [TOOL]}),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}, {"tools": [TOOL]}),
    ("parallel_tool_calls", False, {"tools": [TOOL]}),
    ("reasoning_effort", "high", {}),
    ("include_reasoning", False, {}),
]
REFUSED: list[tuple[str, Any, int]] = [("model", "other", 404), ("use_beam_search", True, 400)]
REFUSED_COMPLETIONS = [("suffix", "x", 400)]
REFUSED_CHAT = [("chat_template", "{{ x }}", 400), ("modalities", ["audio"], 400)]

# As in the reference with fast tokenizers, which write the spaces themselves.
WITHOUT_EFFECT = {"spaces_between_special_tokens"}

ROUTES = {
    "/v1/completions": (CompletionRequest, COMMON + COMPLETIONS, REFUSED + REFUSED_COMPLETIONS),
    "/v1/chat/completions": (ChatRequest, COMMON + CHAT, REFUSED + REFUSED_CHAT),
}
EFFECTS = [(path, *case) for path, (_, cases, _) in ROUTES.items() for case in cases]
REFUSALS = [(path, *case) for path, (_, _, cases) in ROUTES.items() for case in cases]


def plain_body(path: str) -> dict[str, Any]:
    if path == "/v1/completions":
        return {"prompt": "hello", "max_tokens": 64}
    return {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 150}


def observe(path: str, body: dict[str, Any]) -> tuple[Any, ...]:
    """What the engine was asked and what the client got, without what differs every time."""
    server = Server(tool_call_parser="hermes", reasoning_parser="think")
    said = [*(TEXT + CALLS).encode(), EOS, *b"more" * 50]
    server.engine.script = lambda *_: said
    result = server.post(path, body)
    assert result.status_code == 200, result.text
    answer = result.text
    first = documents(answer)[0]
    for name in ("id", "created"):
        answer = answer.replace(msgspec.json.encode(first[name]).decode(), name)
    for call in {part for part in answer.split('"') if part.startswith("call_")}:
        answer = answer.replace(call, "call")
    asked = [(s.prompt, s.sampling, s.priority, s.cache_salt) for s in server.engine.submissions]
    return answer, asked


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON of a whole answer, or of a stream's events."""
    if not text.startswith("data: "):
        return [msgspec.json.decode(text)]
    blocks = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [msgspec.json.decode(block) for block in blocks if block != "[DONE]"]


@pytest.mark.parametrize(("path", "name", "value", "beside"), EFFECTS)
def test_has_an_effect(path: str, name: str, value: object, beside: dict[str, Any]) -> None:
    without = {**plain_body(path), **beside}
    assert observe(path, without) == observe(path, without), "the comparison shows nothing"
    assert observe(path, without) != observe(path, {**without, name: value})
    assert observe(path, without) == observe(path, {"no_such_field": value, **without})


@pytest.mark.parametrize(("path", "name", "value", "status"), REFUSALS)
def test_is_refused(server: Server, path: str, name: str, value: object, status: int) -> None:
    error = server.refusal(path, {**plain_body(path), name: value}, status)
    assert error["param"] == name
    assert not server.engine.submissions


@pytest.mark.parametrize("path", ROUTES)
def test_every_field_is_here(path: str) -> None:
    struct, effects, refusals = ROUTES[path]
    known = {name for name, *_ in [*effects, *refusals]} | WITHOUT_EFFECT
    assert known == set(struct.__struct_fields__)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("name", sorted(WITHOUT_EFFECT))
def test_has_none(path: str, name: str) -> None:
    body = plain_body(path)
    for value in (True, False, None):
        assert observe(path, body) == observe(path, {**body, name: value})
