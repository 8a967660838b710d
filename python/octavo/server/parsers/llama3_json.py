"""Tool calls of Llama 3: the whole answer is JSON objects, perhaps behind <|python_tag|>."""

from __future__ import annotations

from octavo.server.parsers.answer import Parts
from octavo.server.parsers.tool_calls import CallNumbers, JsonCall

_TAG = "<|python_tag|>"
_BETWEEN = " \t\r\n;,"


class Llama3JsonParser:
    """{"name": …, "parameters": {…}}, several with ; between them. Anything else is content."""

    def __init__(self) -> None:
        self._numbers = CallNumbers()
        self._call: JsonCall | None = None
        self._is_plain = False
        self._held = ""  # what may be the tag, or white space before a call

    def feed(self, text: str) -> Parts:
        """Take more text."""
        parts = Parts()
        while text:
            text = self._step(text, parts)
        return parts

    def finish(self) -> Parts:
        """What was held back, once no more text comes."""
        parts = Parts(content="" if self._numbers.count else self._held)
        if self._call is not None and not self._call.is_call:
            parts.content += self._call.text
        return parts

    def _step(self, text: str, parts: Parts) -> str:
        if self._is_plain:
            parts.content += text
            return ""
        if self._call is None:
            return self._look_for_call(text, parts)
        rest = self._call.feed(text, parts)
        if self._call.is_over:
            if not self._call.is_call:
                parts.content += self._held + self._call.text
                self._is_plain = True
            self._call, self._held = None, ""
        return rest

    def _look_for_call(self, text: str, parts: Parts) -> str:
        self._held += text
        start = self._held.lstrip(_BETWEEN).removeprefix(_TAG).lstrip()
        if start.startswith("{"):
            self._call = JsonCall(self._numbers)
            self._held = self._held[: len(self._held) - len(start)]
            return start
        if not start or _TAG.startswith(start):
            return ""
        parts.content += self._held
        self._held, self._is_plain = "", True
        return ""
