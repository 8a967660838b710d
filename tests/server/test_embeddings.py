"""POST /v1/embeddings over a scripted engine."""

from __future__ import annotations

import base64
import math
import struct

import pytest
from app_under_test import BOS, Server
from scripted_engine import HIDDEN_SIZE, MAX_MODEL_LEN, states


def unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector]


def embed(server: Server, **body: object) -> dict:
    result = server.post("/v1/embeddings", body)
    assert result.status_code == 200, result.text
    return result.json


def test_shape(server: Server) -> None:
    body = embed(server, input="ab")
    prompt = [BOS, 97, 98]
    assert body == {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": 0,
                "embedding": pytest.approx(unit(states(prompt, "last")), rel=1e-6),
            }
        ],
        "model": "org/fake",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    assert server.engine.last.sampling.max_tokens == 1


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("ab", [[BOS, 97, 98]]),
        (["a", "b", ""], [[BOS, 97], [BOS, 98], [BOS]]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
def test_inputs(server: Server, given: object, prompts: list[list[int]]) -> None:
    body = embed(server, input=given, pooling="mean", normalize=False)
    assert [each["index"] for each in body["data"]] == list(range(len(prompts)))
    for each, prompt in zip(body["data"], prompts, strict=True):
        mean = [value / len(prompt) for value in states(prompt, "sum")]
        assert each["embedding"] == pytest.approx(mean, rel=1e-6)
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert [each.prompt for each in server.engine.submissions] == prompts


def test_base64_holds_the_same_floats(server: Server) -> None:
    for pooling in ("last", "mean"):
        fields = {"input": ["ab", "c"], "pooling": pooling}
        plain = embed(server, **fields)["data"]
        packed = embed(server, **fields, encoding_format="base64")["data"]
        for one, other in zip(plain, packed, strict=True):
            data = base64.b64decode(other["embedding"])
            assert len(data) == 4 * HIDDEN_SIZE
            assert struct.unpack("<3f", data) == pytest.approx(one["embedding"], rel=1e-6)


def test_options(server: Server) -> None:
    embed(server, input="ab", add_special_tokens=False, priority=3, cache_salt="x", user="u")
    assert server.engine.last.prompt == [97, 98]
    assert server.engine.last.priority == 3
    assert server.engine.last.cache_salt != 0
    embed(server, input="abcdef", truncate_prompt_tokens=2, dimensions=HIDDEN_SIZE)
    assert server.engine.last.prompt == [101, 102]
    embed(server, input="x" * 1000, truncate_prompt_tokens=-1)
    assert len(server.engine.last.prompt) == MAX_MODEL_LEN - 1
    assert len(embed(server, input=["x"] * 1024)["data"]) == 1024


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": [260]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": None}, "input"),
        ({}, "input"),
        ({"input": "x" * 600}, "input"),
        ({"input": ["x"] * 1025}, "input"),
        ({"input": "x", "dimensions": HIDDEN_SIZE - 1}, "dimensions"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "dimensions": 10**30}, "dimensions"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x", "pooling": "max"}, "pooling"),
        ({"input": "x", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "x", "cache_salt": ""}, "cache_salt"),
    ],
)
def test_refused(server: Server, fields: dict, param: str) -> None:
    assert server.refusal("/v1/embeddings", fields)["param"] == param
    assert not server.engine.submissions
