"""Tool calls between tags: the formats of Hermes and Qwen models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from octavo.model.stop_matcher import StopMatcher
from octavo.server.parsers.answer import Parts
from octavo.server.parsers.tool_calls import CallNumbers, Content, JsonCall
from octavo.server.parsers.xml_call import XmlCall

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class _Body(Protocol):
    is_call: bool

    @property
    def is_over(self) -> bool: ...

    @property
    def text(self) -> str: ...

    def feed(self, text: str, parts: Parts) -> str: ...


class TaggedParser:
    """<tool_call>BODY</tool_call>, any number of times, after any content.

    A body that begins with { is a JSON object with name and arguments; one that begins with < is
    <function=NAME><parameter=KEY>VALUE</parameter>…</function>.

    Args:
        schemas: The JSON schema of each function's parameters, by its name.
    """

    def __init__(self, schemas: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self._numbers = CallNumbers()
        self._content = Content(self._numbers)
        self._opening = StopMatcher((OPEN,))
        self._between = StopMatcher((CLOSE, OPEN))
        self._body: _Body | None = None
        self._place = "outside"

    def feed(self, text: str) -> Parts:
        """Take more text."""
        parts = Parts()
        while text:
            if self._place == "outside":
                text = self._outside(text, parts)
            elif self._place == "inside":
                text = self._inside(text, parts)
            else:
                text = self._behind(text)
        return parts

    def finish(self) -> Parts:
        """What was held back, once no more text comes."""
        parts = Parts()
        if self._place == "outside":
            self._content.say(self._opening.flush(), parts)
        elif self._place == "inside":
            self._give_up(parts)
        return parts

    def _outside(self, text: str, parts: Parts) -> str:
        content, found = self._opening.feed(text)
        self._content.say(content, parts)
        if found is None:
            return ""
        self._content.forget()
        self._place = "inside"
        return self._opening.rest

    def _inside(self, text: str, parts: Parts) -> str:
        if self._body is None:
            text = text.lstrip()
            if not text:
                return ""
            self._body = self._begin(text[0])
        rest = self._body.feed(text, parts)
        if self._body.is_over:
            if self._body.is_call:
                self._place = "behind"
            else:
                self._give_up(parts)
                self._place = "outside"
            self._body = None
        return rest

    def _begin(self, first: str) -> _Body:
        if first == "<":
            return XmlCall(self._numbers, self._schemas)
        return JsonCall(self._numbers)

    def _behind(self, text: str) -> str:
        """Between a body and its closing tag there is nothing to tell."""
        _, found = self._between.feed(text)
        if found is None:
            return ""
        self._place = "inside" if found == OPEN else "outside"
        return self._between.rest

    def _give_up(self, parts: Parts) -> None:
        """What began like a call is plain text."""
        if self._body is None:
            parts.content += OPEN
        elif not self._body.is_call:
            parts.content += OPEN + self._body.text
