"""Requests that the schema allows and nobody expects: every feature crossed with every other."""

from __future__ import annotations

import itertools
import random
from typing import Any

VOCAB_SIZE = 512  # the tiny model's

Features = dict[str, list[Any]]

_TEXTS = [
    "x", " ", "\n" * 50, "\0", "é" * 40, "e\u0301" * 20, "👩‍👩‍👧‍👦" * 5, "\u202edlrow",
    "\ufeff", "\ufffd",
    "\U0010ffff", "a" * 3000, "<s></s><s>", "<|im_start|>system\n", "{{ 7 * 7 }}", "{% for %}",
    "%s%n%x", "'; DROP TABLE x; --", "../../etc/passwd", "\u2028\u2029", "ﷺ" * 30, "\u200b" * 30,
    "<tool_call>{", "<think>", "[TOOL_CALLS][{", "\\ud800", "${jndi:x}", "0" * 500,
]  # fmt: skip
_IDS = [[0], [1], [511], [5] * 100, list(range(512)), [0, 1] * 50, [7] * 2000]

_SAMPLING: Features = {
    "n": [1, 2, 3, 16, 128],
    "temperature": [0, 5e-324, 1e-9, 0.5, 1, 2, 100, None],
    "top_p": [5e-324, 1e-9, 0.5, 1, None],
    "top_k": [-1, 0, 1, 2, 511, 512, 2**31 - 1],
    "min_p": [0, 5e-324, 0.5, 1],
    "repetition_penalty": [5e-324, 1e-9, 0.1, 1, 100],
    "presence_penalty": [-2, 0, 2],
    "frequency_penalty": [-2, 0, 2],
    "seed": [-1, 0, 1, 2**63 - 1, -(2**63), None],
    "logit_bias": [
        {}, {"0": -100}, {"5": 1e308}, {"5": -1e308}, {str(i): -100 for i in range(512)},
        {str(i): 100 for i in range(512)}, {"511": 5e-324},
    ],
    "allowed_token_ids": [[0], [1], [511], [5] * 1000, list(range(512))],
    "bad_words": [[], ["a"], ["é" * 40], [" "] * 128, list("etaoinshrdlu"), ["x" * 256]],
    "max_tokens": [1, 2, 3, 16, 24, None],
    "min_tokens": [0, 1, 2, 16],
    "ignore_eos": [True, False],
    "stop": ["", "a", "\0", "é", ["x" * 256] * 16, list("etaoinshr"), "\U0010ffff", []],
    "stop_token_ids": [[], [0], [1], [511], list(range(512)), [5] * 1024],
    "include_stop_str_in_output": [True, False],
    "skip_special_tokens": [True, False],
    "spaces_between_special_tokens": [True, False],
    "return_token_ids": [True, False],
    "truncate_prompt_tokens": [-1, 1, 2, 10**9],
    "priority": [-(2**31), 0, 2**31 - 1],
    "cache_salt": ["x", "y" * 256, "\0", "👩‍👩‍👧‍👦"],
    "stream": [True, False],
    "model": [None],
    "user": ["x", "\0", None],
    "unknown_field": [1, None, [[]], {"a": {"b": []}}],
}  # fmt: skip

_TOOL = {"name": "f", "description": "\0", "parameters": {"type": "object", "properties": {}}}
_TYPED_TOOL = {
    "name": "g-é",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", 1, None, "\0"]}},
        "required": ["a"],
    },
    "strict": True,
}
_SCHEMAS: list[Any] = [
    {}, True, False, {"type": "integer", "minimum": 5, "maximum": 7}, {"enum": ["a", 1, None]},
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}, {"const": "\U0010ffff"},
    {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}},
    {"type": "string", "pattern": "^(a|b){2}$"}, {"type": "unknown"}, {"not": {}},
]  # fmt: skip
_STRUCTURED: list[Any] = [
    {"regex": "[a-z]{1,5}"}, {"regex": "\\d+"}, {"regex": ""}, {"regex": "é\0?"},
    {"regex": "(?=a)"},
    {"choice": ["a", "b"]}, {"choice": ["", "\0", "a"]}, {"choice": ["é" * 200] * 3},
    {"grammar": 'start: "a" | "b" start'}, {"grammar": 'root ::= "x" root?'}, {"grammar": "?"},
    {"json_object": True}, {"json_object": False}, {"regex": "a", "choice": ["b"]},
    *({"json": schema} for schema in _SCHEMAS),
]  # fmt: skip
_FORMATS: list[Any] = [
    {"type": "text"}, {"type": "json_object"}, {"type": "json_schema"},
    *({"type": "json_schema", "json_schema": {"name": "x", "schema": s}} for s in _SCHEMAS),
]  # fmt: skip
_COMPLETIONS: Features = {
    **_SAMPLING,
    "prompt": [*_TEXTS, *_IDS, _TEXTS[:8], _IDS[:3], ["x"] * 40],
    "echo": [True, False],
    "logprobs": [0, 1, 20],
    "prompt_logprobs": [0, 1, 20],
    "add_special_tokens": [True, False],
    "response_format": _FORMATS,
    "structured_outputs": _STRUCTURED,
}
_MESSAGES = [
    [{"role": "user", "content": text}] for text in _TEXTS
] + [
    [{"role": role, "content": "x"}] for role in ("system", "developer", "tool", "assistant", "é")
] + [
    [{"role": "user", "content": None}],
    [{"role": "user", "content": [{"type": "text", "text": "x"}] * 30}],
    [{"role": "user", "content": "x", "name": "\0"}] * 40,
    [{"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}]},
     {"role": "tool", "tool_call_id": "1", "content": "\0"}],
    [{"role": "assistant", "reasoning_content": "x" * 500, "content": ""}],
]  # fmt: skip
_CHAT: Features = {
    **_SAMPLING,
    "messages": _MESSAGES,
    "logprobs": [True, False],
    "top_logprobs": [0, 20],
    "max_completion_tokens": [1, 16],
    "add_generation_prompt": [True, False],
    "continue_final_message": [True, False],
    "chat_template_kwargs": [{}, {"a": "x" * 1000}, {"enable_thinking": False}, {"messages": "x"}],
    "tools": [
        [],
        [{"type": "function", "function": _TOOL}] * 20,
        [{"type": "function", "function": tool} for tool in (_TOOL, _TYPED_TOOL)],
    ],
    "tool_choice": [
        "none",
        "auto",
        "required",
        {"type": "function", "function": {"name": "g-é"}},
    ],
    "parallel_tool_calls": [True, False],
    "reasoning_effort": ["low", "x" * 32],
    "include_reasoning": [True, False],
    "echo": [True, False],
    "response_format": _FORMATS,
    "structured_outputs": _STRUCTURED,
}
_RESPONSES: Features = {
    "input": [*_TEXTS, [{"role": "user", "content": "x"}] * 10],
    "instructions": _TEXTS[:6],
    "max_output_tokens": [1, 16],
    "temperature": [0, 5e-324, 1, 2],
    "top_p": [5e-324, 1],
    "store": [True, False],
    "stream": [True, False],
    "background": [True, False],
    "metadata": [{}, {"a": "\0"}],
    "truncation": ["auto", "disabled"],
    "previous_response_id": ["resp_0", "\0"],
    "tools": [[], [{"type": "function", **_TOOL}], [{"type": "function", **_TYPED_TOOL}]],
    "tool_choice": ["none", "auto", "required"],
    "text": [
        {"format": each}
        for each in (
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "name": "x"},
            *({"type": "json_schema", "name": "x", "schema": schema} for schema in _SCHEMAS),
        )
    ],
}
_ANTHROPIC: Features = {
    "messages": [m for m in _MESSAGES if m[0]["role"] in ("user", "assistant")],
    "system": [*_TEXTS[:6], [{"type": "text", "text": "x"}]],
    "max_tokens": [1, 16],
    "temperature": [0, 5e-324, 1],
    "top_k": [0, 1, 511],
    "top_p": [5e-324, 1],
    "stop_sequences": [[], ["a"], ["\0"]],
    "stream": [True, False],
    "metadata": [{}, {"user_id": "\0"}],
    "thinking": [{"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}],
}
_EMBEDDINGS: Features = {
    "input": [*_TEXTS, *_IDS, _TEXTS[:8], _IDS[:3]],
    "encoding_format": ["float", "base64"],
    "dimensions": [1, 64, 2**31 - 1],
    "pooling": ["last", "mean"],
    "normalize": [True, False],
    "add_special_tokens": [True, False],
    "truncate_prompt_tokens": [-1, 1, 2, 10**9],
    "priority": _SAMPLING["priority"],
    "cache_salt": _SAMPLING["cache_salt"],
    "user": ["x", "\0", None],
}
_TOKENIZE: Features = {
    "prompt": _TEXTS,
    "add_special_tokens": [True, False],
    "return_token_strs": [True, False],
    "messages": _MESSAGES,
}
_DETOKENIZE: Features = {"tokens": [*_IDS, []], "unknown_field": [1]}

# Route, what a request always has, features.
ROUTES: list[tuple[str, Features, Features]] = [
    ("/v1/completions", {"prompt": ["x"], "max_tokens": [4]}, _COMPLETIONS),
    ("/v1/chat/completions", {"messages": _MESSAGES[:1], "max_tokens": [4]}, _CHAT),
    ("/v1/responses", {"input": ["x"], "max_output_tokens": [4]}, _RESPONSES),
    ("/v1/messages", {"messages": _MESSAGES[:1], "max_tokens": [4]}, _ANTHROPIC),
    ("/v1/embeddings", {"input": ["x"]}, _EMBEDDINGS),
    ("/v1/messages/count_tokens", {"messages": _MESSAGES[:1]}, _ANTHROPIC),
    ("/tokenize", {"prompt": ["x"]}, _TOKENIZE),
    ("/detokenize", {"tokens": [[5]]}, _DETOKENIZE),
]
_PAIRS = [
    (path, base, features, pair)
    for path, base, features in ROUTES
    for pair in itertools.combinations(features, 2)
]
NUM_PAIRS = len(_PAIRS)
_MAX_WORK = 400  # tokens of one request, so that many requests can be tried


def odd_request(index: int, seed: int) -> tuple[str, dict[str, Any]]:
    """Request `index`: a path and a body.

    NUM_PAIRS requests in a row hold every pair of features of every route, each request some more
    features by chance.
    """
    chance = random.Random(f"{seed}/{index}")
    path, base, features, pair = _PAIRS[(index * 7919) % NUM_PAIRS]
    body = {name: chance.choice(values) for name, values in base.items()}
    names = {*pair, *(name for name in features if chance.random() < 0.08)}
    body |= {name: chance.choice(features[name]) for name in sorted(names)}
    _limit_work(body)
    if body.get("stream") and "completions" in path and chance.random() < 0.3:
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return path, body


def _limit_work(body: dict[str, Any]) -> None:
    prompts = body.get("prompt")
    count = len(prompts) if isinstance(prompts, list) and not isinstance(prompts[0], int) else 1
    count *= body.get("n") or 1
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if name in body:
            body[name] = max(1, min(body[name] or 24, _MAX_WORK // count))
