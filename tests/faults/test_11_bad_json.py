"""Fault 11: text that is no JSON, and JSON that is no request, is a 400 on every route."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from faults.wire import connect, post, read_all, statuses

if TYPE_CHECKING:
    from e2e.serving import Server

ROUTES = {
    "/v1/completions": '{"prompt":"x","max_tokens":1,%s}',
    "/v1/chat/completions": '{"messages":[{"role":"user","content":"x"}],"max_tokens":1,%s}',
    "/v1/responses": '{"input":"x","max_output_tokens":1,%s}',
    "/v1/messages": '{"messages":[{"role":"user","content":"x"}],"max_tokens":1,%s}',
    "/v1/messages/count_tokens": '{"messages":[{"role":"user","content":"x"}],%s}',
    "/tokenize": '{"prompt":"x",%s}',
    "/detokenize": '{"tokens":[5],%s}',
}
DEEP = "[" * 100_000 + "]" * 100_000
NEVER = [
    b"", b"\0", b"null", b"[]", b"5", b'"x"', b"{", b"{}", b"\xff\xfe{}", b"\xef\xbb\xbf{}",
    b'{"prompt":"\xff"}', b'{"prompt":"\\ud800"}', b'{"messages":"\\udfff"}', b"{'a':1}", b"{,}",
    DEEP.encode(), b'{"a":' * 100_000, b"[" * 1_000_000,
]  # fmt: skip
# Parts of an otherwise good request.
PARTS = [
    '"temperature":NaN', '"temperature":Infinity', '"temperature":-Infinity', '"temperature":1e999',
    '"temperature":true', '"top_p":"1"', '"a":NaN', '"a":1e99999', '"stream":1', '"stream":"yes"',
    f'"a":{DEEP}', '"model":[]', '"model":1', '"temperature":[[[1]]]', '"a":"\\ud800"', '"a":tru',
]  # fmt: skip
NOT_JSON = ("NaN", "Infinity", '"a":tru', DEEP, "ud800")
IGNORES_MOST = {"/v1/messages/count_tokens", "/tokenize", "/detokenize"}
# JSON that is valid and strange: whatever it says, it is no fault of the server.
STRANGE = [
    '"a":1' + "0" * 5000, '"a":-0', '"model":null', '"a":"\\u0000"',
    '"stream":false,"stream":false',
    '"user":"' + "x" * 100_000 + '"', '"a":' + "[" * 100 + "]" * 100, '"":""',
]  # fmt: skip


def ask(server: Server, path: str, body: bytes) -> tuple[int, bytes]:
    with connect(server) as connection:
        connection.sendall(post(path, body, "Connection: close"))
        received = read_all(connection)
    (status,) = statuses(received)
    return status, received.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize("path", ROUTES)
def test_no_json_object(server: Server, path: str) -> None:
    for body in NEVER:
        status, answer = ask(server, path, body)
        assert status == 400, (body[:60], status)
        assert json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("path", ROUTES)
def test_bad_values(server: Server, path: str) -> None:
    for part in PARTS:
        status, answer = ask(server, path, (ROUTES[path] % part).encode())
        # A field that a route does not know may hold anything that is JSON.
        may_be_ignored = path in IGNORES_MOST or part.startswith('"a":1e')
        assert status == 400 or (may_be_ignored and status == 200), (part[:60], status, answer)
        if any(word in part for word in NOT_JSON):
            assert status == 400, part[:60]


@pytest.mark.parametrize("path", ROUTES)
def test_strange_values(server: Server, path: str) -> None:
    for part in STRANGE:
        status, answer = ask(server, path, (ROUTES[path] % part).encode())
        assert status in (200, 400), (part[:60], status, answer[:200])
