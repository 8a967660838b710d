"""Which parsers a model's answers need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError
from octavo.server.parsers.llama3_json import Llama3JsonParser
from octavo.server.parsers.mistral import MARK, MistralParser
from octavo.server.parsers.tagged import OPEN as TOOL_CALL
from octavo.server.parsers.tagged import TaggedParser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from octavo.server.parsers.answer import ToolParser

AUTO, NONE = "auto", "none"
FORCED = "hermes"  # the format of a call that is forced on a model without one

TOOL_PARSERS: dict[str, Callable[[Mapping[str, Any]], ToolParser]] = {
    "hermes": TaggedParser,
    "qwen": TaggedParser,
    "llama3_json": lambda _: Llama3JsonParser(),
    "mistral": lambda _: MistralParser(),
}
# Formats whose marks are special tokens: the text must show them.
SHOWS_SPECIAL_TOKENS = frozenset({"llama3_json", "mistral"})

REASONING_PARSERS = ("think", "deepseek_r1", "qwen3")

# A token that only models of one format have, to the format.
_TOOL_MARKS = {TOOL_CALL: "hermes", MARK: "mistral", "<|python_tag|>": "llama3_json"}


def find_tool_parser(wanted: str, token_to_id: Callable[[str], int | None]) -> str | None:
    """The name of the tool parser; auto looks at the vocabulary.

    Raises:
        ConfigError: There is none of this name.
    """
    if wanted == AUTO:
        marks = (name for mark, name in _TOOL_MARKS.items() if token_to_id(mark) is not None)
        return next(marks, None)
    return _checked(wanted, TOOL_PARSERS, "--tool-call-parser")


def find_reasoning_parser(wanted: str, token_to_id: Callable[[str], int | None]) -> str | None:
    """The name of the reasoning parser; auto looks at the vocabulary.

    Raises:
        ConfigError: There is none of this name.
    """
    if wanted == AUTO:
        return "think" if token_to_id("</think>") is not None else None
    return _checked(wanted, REASONING_PARSERS, "--reasoning-parser")


def _checked(wanted: str, known: Any, flag: str) -> str | None:
    if wanted in ("", NONE):
        return None
    if wanted not in known:
        choices = ", ".join([AUTO, NONE, *known])
        raise ConfigError(f"{flag}: {wanted!r} is not one of {choices}.")
    return wanted
