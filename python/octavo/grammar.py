"""Grammars of structured output, in llguidance's notation: what an output has to match.

A grammar is plain text, so that it can travel between processes. Its compilation is bounded by
MAX_BYTES and limits(): what is over them is refused, and what is not compiles in milliseconds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llguidance import LLParserLimits

MAX_BYTES = 64 << 10  # of a schema, an expression or a grammar as a request gives it
MAX_COMPOSED_BYTES = 1 << 20  # of what is made of the schemas of a request's tools
_MAX_ERROR = 400

# White space inside JSON is bounded: a model that has nothing to say fills a line with it for ever.
_JSON = {"whitespace_pattern": r"[ \n\t]{0,16}"}


def json_schema(schema: Any, *, is_lenient: bool = False) -> str:
    """JSON that a schema accepts.

    Args:
        schema: A JSON schema.
        is_lenient: Ignore keywords that are not supported instead of refusing them.

    Raises:
        InvalidRequestError: The schema is neither an object nor a boolean.
    """
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError("A JSON schema must be an object.")
    shown = {"allOf": [schema]} if isinstance(schema, bool) else schema
    options = {**_JSON, "lenient": is_lenient}
    return _grammars([{"json_schema": {**shown, "x-guidance": options}}])


def json_object() -> str:
    """Any JSON object."""
    return json_schema({"type": "object"})


def regex(expression: str) -> str:
    """Text that an expression matches as a whole, in the syntax of Rust's regex crate."""
    from llguidance import LLMatcher  # noqa: PLC0415 - takes time that most workers never need

    return str(LLMatcher.grammar_from_regex(expression))


def choice(texts: Sequence[str]) -> str:
    """One of several texts."""
    return lark("start: " + " | ".join(quoted(text) for text in texts))


def lark(text: str) -> str:
    """What a grammar in Lark's notation derives from `start`."""
    return _grammars([{"lark_grammar": text}])


def grammar(text: str) -> str:
    """What a grammar in Lark's or GBNF's notation derives.

    Raises:
        InvalidRequestError: It is neither.
    """
    from llguidance.gbnf_to_lark import any_to_lark  # noqa: PLC0415

    try:
        return lark(any_to_lark(text))
    except Exception as error:
        raise _invalid(str(error)) from None


def compose(rules: str, parts: dict[str, str]) -> str:
    """A grammar of rules in Lark's notation that name other grammars as @name."""
    inner = []
    for name, text in parts.items():
        (part,) = json.loads(text)["grammars"]
        inner.append({**part, "name": name})
    return _grammars([{"lark_grammar": rules}, *inner])


def quoted(text: str) -> str:
    """A literal in Lark's notation."""
    return json.dumps(text, ensure_ascii=False)


def limits() -> LLParserLimits:
    """What a grammar may cost: about 10 MB and, for each token, some milliseconds."""
    from llguidance import LLParserLimits  # noqa: PLC0415

    return LLParserLimits(max_lexer_states=50_000, max_grammar_size=200_000, verbose_errors=False)


def check(text: str) -> None:
    """Compile a grammar without a vocabulary.

    Raises:
        InvalidRequestError: It is too large, malformed, or uses what is not supported.
    """
    from llguidance import LLMatcher  # noqa: PLC0415

    if len(text.encode()) > MAX_COMPOSED_BYTES:
        raise InvalidRequestError(f"is over the limit of {MAX_COMPOSED_BYTES} bytes.")
    fault = LLMatcher.validate_grammar(text, limits=limits())
    if fault and not fault.startswith("WARNING"):
        raise _invalid(fault)


def _invalid(fault: str) -> InvalidRequestError:
    lines = [line.strip() for line in fault.replace("<non-verbose/>", "").splitlines()]
    text = " ".join(line for line in lines if line)
    return InvalidRequestError(text[:_MAX_ERROR] + ("…" if len(text) > _MAX_ERROR else "."))


def _grammars(grammars: list[dict[str, Any]]) -> str:
    return json.dumps({"grammars": grammars}, ensure_ascii=False)
