"""A look at large bodies before they are taken apart.

The schemas bound every list and string, but only once it has been built, at up to 30 times its
size: a refusal would cost hundreds of megabytes. Here a body is passed over without building
anything, and fields that are larger than any good value are refused.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from octavo.errors import InvalidRequestError

LARGE_BODY_BYTES = 256 << 10
MAX_PROMPTS = 1024
_MAX_FIELD_BYTES = 256 << 10
_MAX_TOOLS_BYTES = 9 << 20  # 128 schemas of 64 KiB each, and what is around them
_MAX_IDS_BYTES = 4 << 20  # more ids than any vocabulary has
_PIECE = 1 << 20

# What a request is about may fill the body: it is bounded by the context.
_CONTENT = frozenset({"prompt", "messages", "input", "system", "instructions", "tokens"})
_LIMITS = {"tools": _MAX_TOOLS_BYTES, "allowed_token_ids": _MAX_IDS_BYTES}


def check_sizes(kind: Any, body: bytes | bytearray | memoryview) -> None:
    """Refuse a body that no struct of this kind can come from.

    Raises:
        InvalidRequestError: Naming the field.
    """
    if not isinstance(kind, type) or not issubclass(kind, msgspec.Struct):
        return
    try:
        fields = msgspec.structs.asdict(_outline(kind).decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # whoever decodes it says what is wrong
    for name, raw in fields.items():
        if name in _CONTENT:
            _check_prompts(name, raw)
            continue
        size, limit = len(memoryview(raw)), _LIMITS.get(name, _MAX_FIELD_BYTES)
        if size > limit:
            raise InvalidRequestError(
                f"{name}: must be at most {limit} bytes of JSON, got {size}.", param=name
            )


@cache
def _outline(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct]:
    """Decodes nothing but where each field stands."""
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    struct = msgspec.defstruct(
        f"{kind.__name__}Outline", [(name, msgspec.Raw, msgspec.Raw()) for name in names]
    )
    return msgspec.json.Decoder(struct)


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
