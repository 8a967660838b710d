"""A stream server that also answers /health, /v1/models and chats, as a test sets it up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bench.stream_server import HEAD, StreamServer, chunk, event, plain

if TYPE_CHECKING:
    from collections.abc import Iterator

END = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
MODELS = {"data": [{"id": "demo/model"}, {"id": "other"}]}


def delta(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return chunk(event({"choices": [choice]}))


def answer_bytes(pieces: list[str], *, finish_reason: str = "stop") -> Iterator[bytes]:
    yield HEAD + chunk(event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}))
    for piece in pieces:
        yield delta(piece)
    counts = {"prompt_tokens": 12, "completion_tokens": len(pieces),
              "prompt_tokens_details": {"cached_tokens": 4}}  # fmt: skip
    yield delta("", finish_reason)
    yield chunk(event({"choices": [], "usage": counts})) + END


class ChatServer(StreamServer):
    """Answers each chat or completion with `pieces`; /health goes through `healths` first."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = list(pieces) or ["Hello", ", ", "world", "!"]
        self.healths: list[tuple[str, dict[str, Any]]] = []
        super().__init__(self.route)

    def route(self, request: dict[str, Any]) -> Iterator[bytes]:
        path = request["_path"]
        if path == "/health":
            status, body = self.healths.pop(0) if self.healths else ("200 OK", {})
            yield plain(status, json.dumps(body))
        elif path == "/v1/models":
            yield plain("200 OK", json.dumps(MODELS))
        else:
            yield from self.reply(request)

    def reply(self, request: dict[str, Any]) -> Iterator[bytes]:
        if "messages" in request:
            yield from answer_bytes(self.pieces)
            return
        yield HEAD
        for piece in self.pieces:
            yield chunk(event({"choices": [{"index": 0, "text": piece}]}))
        end = {"index": 0, "text": "", "finish_reason": "length"}
        usage = {"prompt_tokens": 7, "completion_tokens": len(self.pieces)}
        yield chunk(event({"choices": [end]})) + chunk(event({"choices": [], "usage": usage})) + END

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The bodies of the chats and completions."""
        return [body for body in self.requests if body]
