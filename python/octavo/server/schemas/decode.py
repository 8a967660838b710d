"""JSON to request structs; every fault becomes a 400 that names the field."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from octavo.errors import InvalidRequestError
from octavo.server.schemas.sizes import LARGE_BODY_BYTES, check_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.server.schemas.sizes import PromptRoom

T = TypeVar("T")

MAX_NESTING = 128
MAX_FREE_FORM_BYTES = 64 << 10

_LOCATION = re.compile(
    r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<where>[^`]*)`)?$", re.DOTALL
)
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]+)`$")


def decode(
    decoder: msgspec.json.Decoder[T],
    body: bytes | bytearray | memoryview,
    room: Callable[[], PromptRoom] | None = None,
) -> T:
    """Parse and validate a request body.

    Args:
        decoder: Of the route.
        body: JSON.
        room: What its `prompt` may hold; looked at where the body is large.

    Raises:
        InvalidRequestError: Not JSON, or not what the schema asks for.
    """
    if len(body) > LARGE_BODY_BYTES:
        check_sizes(decoder.type, body, room)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequestError("The request body is not valid JSON.") from None
    except RecursionError:
        raise InvalidRequestError("The request body is nested too deeply.") from None


def decode_free_form(raw: msgspec.Raw, param: str) -> Any:
    """Parse a value of any shape, such as a JSON schema; None where the field was left out.

    Raises:
        InvalidRequestError: Over 64 KiB, nested deeper than 128, or not valid JSON.
    """
    data = bytes(raw)
    if not data:
        return None
    if len(data) > MAX_FREE_FORM_BYTES:
        raise InvalidRequestError(
            f"{param}: must be at most {MAX_FREE_FORM_BYTES} bytes of JSON, got {len(data)}.",
            param=param,
        )
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InvalidRequestError(f"{param}: is not valid JSON.", param=param) from None
    except RecursionError:
        raise _too_deep(param) from None
    if _nests_deeper_than(value, MAX_NESTING):
        raise _too_deep(param)
    return value


def _explain(text: str) -> InvalidRequestError:
    match = _LOCATION.match(text)
    what, where = (match["what"], match["where"] or "") if match else (text, "")
    if missing := _MISSING.match(what):
        where = f"{where}.{missing['name']}" if where else missing["name"]
        return InvalidRequestError(f"{where}: is required.", param=where)
    what = what.replace(" | null`", "`").replace("`", "")
    what = what[:1].lower() + what[1:]
    if not where:
        return InvalidRequestError(f"The request body is not acceptable: {what}.")
    return InvalidRequestError(f"{where}: {what}.", param=where)


def _too_deep(param: str) -> InvalidRequestError:
    return InvalidRequestError(f"{param}: nested deeper than {MAX_NESTING}.", param=param)


def _nests_deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        containers = [each for each in level if isinstance(each, dict | list)]
        if not containers:
            return False
        level = [
            inner
            for each in containers
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return True
