"""Fault 20: schemas and expressions that are made to hurt are answered in time, beside a stream."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from faults.wire import (
    IS_LONG,
    Canary,
    connect,
    figures,
    in_threads,
    patience,
    post,
    read_all,
    statuses,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e.serving import Server

DEADLINE_S = 2.0
NUM_SCHEMAS = 100_000 if IS_LONG else 200
NUM_CLIENTS = 6


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def json_schema(schema: Any) -> dict[str, Any]:
    wanted = {"name": "x", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


def regex(pattern: str) -> dict[str, Any]:
    return {"structured_outputs": {"regex": pattern}}


EVIL: dict[str, dict[str, Any]] = {
    "nested quantifiers": regex("((a+)+)+" * 200 + "b{1,100000}{1,100000}"),
    "wide quantifier": regex("((a{1,100000}){1,100000}){1,100000}"),
    "many alternatives": regex("|".join(f"a{{{i},100000}}" for i in range(2000))),
    "deep groups": regex("(" * 20_000 + "a" + ")" * 20_000),
    "not an expression": regex("((("),
    "a megabyte": regex("a" * (1 << 20)),
    "deep objects": json_schema(nested(400)),
    "reference cycle": json_schema({"$ref": "#"}),
    "references in a ring": json_schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    "reference to elsewhere": json_schema({"$ref": "http://127.0.0.1:1/schema.json"}),
    "reference to a file": json_schema({"$ref": "file:///etc/passwd"}),
    "an enumeration of a megabyte": json_schema({"enum": [f"value {i:09}" for i in range(60_000)]}),
    "wide pattern in a schema": json_schema({"type": "string", "pattern": "(a{1,100000}){1,9999}"}),
    "no schema": json_schema(5),
    "endless grammar": {"structured_outputs": {"grammar": "start: start start | start"}},
    "a wide grammar": {"structured_outputs": {"grammar": "start: " + '"a" | ' * 100_000 + '"b"'}},
    "choices of a megabyte": {"structured_outputs": {"choice": ["x" * 1000] * 1100}},
    "two forms": {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    "deep tool parameters": {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": nested(200)}}]
    },
    "tool parameters of a megabyte": {
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"x": "y" * (1 << 20)}}}
        ]
    },
}


# Refused, or kept to at a bounded cost.
MAY_BE_BOUNDED = {
    "nested quantifiers", "wide quantifier", "many alternatives", "reference cycle",
    "wide pattern in a schema", "endless grammar",
}  # fmt: skip


def ask(server: Server, fields: dict[str, Any]) -> tuple[int, bytes]:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, **fields}
    with connect(server) as connection:
        connection.sendall(post("/v1/chat/completions", body, "Connection: close"))
        received = read_all(connection)
    (status,) = statuses(received)
    return status, received.partition(b"\r\n\r\n")[2]


@pytest.fixture(scope="module")
def canary(server: Server) -> Iterator[Canary]:
    with Canary(server) as running:
        yield running
    running.check()
    figures(20, canary_streams=running.num_streams, canary_max_gap_ms=round(running.gap(1), 1))


@pytest.mark.parametrize("name", EVIL)
def test_evil(server: Server, canary: Canary, name: str) -> None:
    began = time.monotonic()
    status, answer = ask(server, EVIL[name])
    took = time.monotonic() - began
    assert status == 400 or (status == 200 and name in MAY_BE_BOUNDED), answer[:300]
    assert status == 200 or json.loads(answer)["error"]["message"]
    assert took < DEADLINE_S * patience() + 0.5
    figures(20, case=name, status=status, answered_after_s=round(took, 3))


def test_a_refusal_leaves_no_traceback(server: Server) -> None:
    """Or whoever sends nonsense fills the log."""
    assert ask(server, EVIL["not an expression"])[0] == 400
    assert "Traceback" not in server.log()
    assert "InvalidRequestError" not in server.log()


def resident_bytes(server: Server) -> int:
    total = 0
    for pid in server.children():
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return total


def test_many_distinct_schemas(server: Server, canary: Canary) -> None:
    def schema(index: int) -> dict[str, Any]:
        properties = {f"key_{index}": {"type": "string", "maxLength": index % 100}}
        return json_schema({"type": "object", "properties": properties})

    def ask_all(first: int, last: int) -> None:
        def work(thread: int) -> None:
            for index in range(first + thread, last, NUM_CLIENTS):
                assert ask(server, schema(index))[0] == 200

        in_threads(NUM_CLIENTS, work, timeout=3600)

    began = time.monotonic()
    ask_all(0, NUM_SCHEMAS // 2)
    before = resident_bytes(server)
    ask_all(NUM_SCHEMAS // 2, NUM_SCHEMAS)
    grown = resident_bytes(server) - before
    took = time.monotonic() - began
    figures(20, distinct_schemas=NUM_SCHEMAS, seconds=round(took), grown_mb=round(grown / 1e6, 1))
    assert grown < 32 << 20
