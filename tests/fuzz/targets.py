"""Fuzz targets: each takes any bytes, and only what it is meant to raise may come out of it.

A target's corpus is corpus/NAME. test_corpora.py replays it; run.py looks for more.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.engine.framing import FrameBuffer, FrameError, decode
from octavo.engine.protocol import LENGTH, ToEngine, ToWorker
from octavo.errors import CheckpointError, InvalidRequestError, RequestError, UnsupportedModelError
from octavo.model.chat_template import ChatTemplate
from octavo.model.safetensors_file import SafetensorsFile
from octavo.server.conversation import conversation_of, tools_of
from octavo.server.message_input import chat_request as from_message
from octavo.server.parsers.answer import AnswerParser, Parts
from octavo.server.parsers.reasoning import ReasoningParser
from octavo.server.parsers.registry import TOOL_PARSERS
from octavo.server.response_input import chat_request as from_response
from octavo.server.schemas.chat import ChatRequest
from octavo.server.schemas.completions import CompletionRequest
from octavo.server.schemas.decode import decode as decode_body
from octavo.server.schemas.embeddings import EmbeddingRequest
from octavo.server.schemas.messages import MessagesRequest
from octavo.server.schemas.responses import ResponseRequest
from octavo.server.schemas.sampling import OutputLimits, to_sampling_params
from octavo.server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from octavo.server.structured import answer_grammar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TO_ENGINE = msgspec.msgpack.Decoder(ToEngine)
_TO_WORKER = msgspec.msgpack.Decoder(ToWorker)
_BODIES = [
    msgspec.json.Decoder(kind)
    for kind in (
        CompletionRequest, ChatRequest, ResponseRequest, MessagesRequest, TokenizeRequest,
        DetokenizeRequest, EmbeddingRequest,
    )
]  # fmt: skip
_SCHEMAS = {
    "f": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array"}}},
    "g": None,
}
_PARSERS = [(name, is_inside) for name in TOOL_PARSERS for is_inside in (False, True)]
_EVERY_PARSER = 224


class _NoDefaults:
    temperature = top_k = top_p = min_p = repetition_penalty = None


def safetensors(data: bytes) -> None:
    """The header, and every tensor that it names."""
    descriptor, path = tempfile.mkstemp(suffix=".safetensors")
    try:
        os.write(descriptor, data)
        os.close(descriptor)
        with contextlib.suppress(CheckpointError, UnsupportedModelError):
            file = SafetensorsFile(Path(path))
            for name, entry in file.tensors.items():
                assert entry.num_bytes <= len(data)
                file.read(name, memoryview(bytearray(entry.num_bytes)))
    finally:
        Path(path).unlink()


def frames(data: bytes) -> None:
    """What the engine reads from a worker, and the other way round, in pieces of any size."""
    with contextlib.suppress(FrameError):
        buffer = FrameBuffer()
        found = []
        for piece in _pieces(data):
            found += buffer.feed(piece)
        assert sum(len(frame) + LENGTH.size for frame in found) <= len(data)
        for frame in found:
            for decoder in (_TO_ENGINE, _TO_WORKER):
                with contextlib.suppress(FrameError):
                    decode(frame, decoder)


def requests(data: bytes) -> None:
    """A body, parsed, checked and turned into what the engine is asked; the first byte chooses."""
    decoder: Any = _BODIES[data[0] % len(_BODIES)] if data else _BODIES[0]
    with contextlib.suppress(RequestError):
        request = decode_body(decoder, data[1:])
        if isinstance(request, MessagesRequest):
            request = from_message(request)
        if isinstance(request, ResponseRequest):
            request = from_response(request, ())
        if isinstance(request, ChatRequest | TokenizeRequest):
            conversation_of(request)
        if isinstance(request, ChatRequest):
            tools_of(request)
        if isinstance(request, ChatRequest | CompletionRequest):
            request.check()
            request.check_token_ids(512)
            answer_grammar(request)
            to_sampling_params(request, _NoDefaults(), OutputLimits(max_tokens=16))


def parsers(data: bytes) -> None:
    """A model's answer; the same parts however it is cut.

    The first byte says into how long pieces, and by which parser; from _EVERY_PARSER on by all of
    them, which is slow.
    """
    how = data[0] if data else _EVERY_PARSER
    text = data[1:].decode("utf-8", "replace")
    pieces = [text[i : i + 1 + how % 7] for i in range(0, len(text), 1 + how % 7)]
    chosen = _PARSERS if how >= _EVERY_PARSER else [_PARSERS[how // 7 % len(_PARSERS)]]
    for name, is_inside in chosen:
        at_once = _parsed(name, is_inside, [text])
        assert _parsed(name, is_inside, pieces) == at_once, name


def templates(data: bytes) -> None:
    """A template and a chat, parted by the first NUL."""
    source, _, chat = data.partition(b"\0")
    with contextlib.suppress(InvalidRequestError, UnsupportedModelError):
        template = ChatTemplate(source.decode("utf-8", "replace"))
        text = chat.decode("utf-8", "replace")
        template.render([{"role": "user", "content": text}])


TARGETS: dict[str, Callable[[bytes], None]] = {
    "safetensors": safetensors,
    "frames": frames,
    "requests": requests,
    "parsers": parsers,
    "templates": templates,
}
TAKES_JSON = frozenset({"requests"})  # behind a first byte


def _pieces(data: bytes) -> Iterator[bytes]:
    step = 1 + (data[0] if data else 0)
    for start in range(0, len(data), step):
        yield data[start : start + step]


def _parsed(name: str, is_inside: bool, pieces: list[str]) -> tuple[str, str, list[Any]]:
    parser = AnswerParser(ReasoningParser(is_inside=is_inside), TOOL_PARSERS[name](_SCHEMAS))
    total = Parts()
    for piece in pieces:
        total.extend(parser.feed(piece))
    total.extend(parser.finish())
    calls: list[list[str]] = []
    for delta in total.calls:
        if delta.name is not None:
            calls.append([delta.name, ""])
        calls[delta.index][1] += delta.arguments
    return total.content, total.reasoning, calls
