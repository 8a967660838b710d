"""A look at large bodies before they are taken apart.

The schemas bound every list and string, but only once it has been built, at up to 30 times its
size: a refusal would cost hundreds of megabytes. Here a body is passed over without building
anything, and fields that are larger than any good value are refused; so is what is no JSON at all.
"""

from __future__ import annotations

import contextlib
import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.model.detokenizer import TextDensity

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE_BODY_BYTES = 256 << 10
MAX_PROMPTS = 1024
MAX_TOOLS = 128
_MAX_FIELD_BYTES = 256 << 10
_MAX_TOOLS_BYTES = 9 << 20  # 128 schemas of 64 KiB each, and what is around them
_MAX_IDS_BYTES = 4 << 20  # more ids than any vocabulary has
_PIECE = 1 << 20
_ESCAPE_BYTES = 5  # of one that names a code point, behind its backslash

# What a request is about may fill the body: it is bounded by the context.
_CONTENT = frozenset({"prompt", "messages", "input", "system", "instructions", "tokens"})
_LIMITS = {"tools": _MAX_TOOLS_BYTES, "allowed_token_ids": _MAX_IDS_BYTES}
_NULL = (b"", b"null")
_BETWEEN_ITEMS = re.compile(r"[\s,]*")


class PromptRoom(msgspec.Struct, frozen=True):
    """What `prompt` may hold where it has to fit the context.

    Attributes:
        max_model_len: Tokens of the context.
        density: How few tokens a text can have.
    """

    max_model_len: int
    density: TextDensity


def prompt_too_long(num_tokens: int, max_model_len: int, param: str) -> InvalidRequestError:
    """The refusal of a prompt that leaves no room in the context."""
    error = InvalidRequestError(
        f"This model's context is {max_model_len} tokens, but the prompt has at least "
        f"{num_tokens}.",
        param=param,
    )
    error.code = "context_length_exceeded"
    return error


def check_sizes(
    kind: Any,
    body: bytes | bytearray | memoryview,
    room: Callable[[], PromptRoom] | None = None,
) -> None:
    """Refuse a body that no struct of this kind can come from.

    Args:
        kind: The struct; nothing else is looked at.
        body: JSON.
        room: Of `prompt`, unless the request has prompts truncated; None leaves it unlimited.

    Raises:
        InvalidRequestError: Naming the field.
    """
    if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct):
        return
    try:
        fields = msgspec.structs.asdict(_outline(kind).decode(body))
    except (msgspec.ValidationError, RecursionError):
        return  # whoever decodes it says what is wrong
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequestError("The request body is not valid JSON.") from None
    if room is not None and bytes(fields["truncate_prompt_tokens"]) in _NULL:
        _check_prompt_fits(fields["prompt"], room)
    for name, raw in fields.items():
        if name in _CONTENT:
            _check_prompts(name, raw)
            continue
        size, limit = len(memoryview(raw)), _LIMITS.get(name, _MAX_FIELD_BYTES)
        if size > limit:
            raise InvalidRequestError(
                f"{name}: must be at most {limit} bytes of JSON, got {size}.", param=name
            )
        if name == "tools" and size > LARGE_BODY_BYTES:
            _check_tools(raw)


@cache
def _outline(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Decodes nothing but where each field stands."""
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    struct = msgspec.defstruct(
        f"{kind.__name__}Outline", [(name, msgspec.Raw, msgspec.Raw()) for name in names]
    )
    return msgspec.json.Decoder(struct)


def _check_tools(raw: msgspec.Raw) -> None:
    """Count those at the beginning: a list of far too many has too many there."""
    text = str(memoryview(raw)[:LARGE_BODY_BYTES], "utf-8", "replace")
    scan = json.JSONDecoder().raw_decode
    count, at = 0, 1
    with contextlib.suppress(ValueError, RecursionError):  # an item that is cut off, or no JSON
        while count <= MAX_TOOLS:
            _, at = scan(text, _BETWEEN_ITEMS.match(text, at).end())  # type: ignore[union-attr]
            count += 1
    if count > MAX_TOOLS:
        raise InvalidRequestError(f"tools: at most {MAX_TOOLS} a request.", param="tools")


def _check_prompt_fits(raw: msgspec.Raw, room: Callable[[], PromptRoom]) -> None:
    """Refuse what has more tokens than the context, however they are cut."""
    view = memoryview(raw)
    if len(view) <= LARGE_BODY_BYTES:
        return
    begin = bytes(view[:64]).translate(None, b" \t\r\n")[:2]
    limit = room()
    if begin[:1] == b'"':
        least = _least_tokens(view[1:-1], limit)
    elif begin == b"[[":
        least = (_count(view, b",") + 1) // (_count(view, b"[") - 1)  # of the longest
    elif begin[1:].isdigit() or begin == b"[-":
        least = _count(view, b",") + 1
    else:
        return
    if least > limit.max_model_len:
        raise prompt_too_long(least, limit.max_model_len, "prompt")


def _least_tokens(text: memoryview, limit: PromptRoom) -> int:
    """Tokens that a JSON string has at least; counted on no further than they are too many."""
    most = limit.density.bytes_per_token
    if not most:
        return 0
    num_bytes, unsure = 0, limit.density.dropped + b"\\"
    for begin in range(0, len(text), _PIECE):
        piece = bytes(text[begin : begin + _PIECE])
        num_escapes = piece.count(b"\\u") + 1  # one may be cut in two
        num_bytes += len(piece.translate(None, unsure)) - _ESCAPE_BYTES * num_escapes
        if num_bytes > limit.max_model_len * most:
            break
    return -(-num_bytes // most)


def _check_prompts(name: str, raw: msgspec.Raw) -> None:
    view = memoryview(raw)
    begin = bytes(view[:64]).translate(None, b" \t\r\n")[:2]
    if begin == b"[[":
        count = _count(view, b"[") - 1
    elif begin == b'["':
        # Two quotes each, but for those inside, which have a backslash. One that stands behind an
        # escaped backslash is taken for such: the true number is never less than what comes out.
        num_pieces = len(view) // _PIECE + 1
        count = (_count(view, b'"') - _count(view, b'\\"') - num_pieces) // 2
    else:
        return
    if count > MAX_PROMPTS:
        raise InvalidRequestError(
            f"{name}: at most {MAX_PROMPTS} prompts a request, got at least {count}.", param=name
        )


def _count(view: memoryview, what: bytes) -> int:
    pieces = (bytes(view[i : i + _PIECE]) for i in range(0, len(view), _PIECE))
    return sum(piece.count(what) for piece in pieces)
