"""Tool calls of Mistral models, behind [TOOL_CALLS]."""

from __future__ import annotations

from octavo.model.stop_matcher import StopMatcher
from octavo.server.parsers.answer import Parts
from octavo.server.parsers.json_scanner import JsonScanner
from octavo.server.parsers.tool_calls import CallNumbers, Content, JsonCall

MARK = "[TOOL_CALLS]"
_ARGS, _CALL_ID = "[ARGS]", "[CALL_ID]"
_ID_LENGTH = 9  # Mistral's templates refuse any other
_MAX_NAME = 256
_MAX_HEAD = 2 * _MAX_NAME  # between the mark and the arguments


class MistralParser:
    """[TOOL_CALLS][{"name": …, "arguments": {…}}, …], or [TOOL_CALLS]NAME[ARGS]{…} each."""

    def __init__(self) -> None:
        self._numbers = CallNumbers(_ID_LENGTH)
        self._content = Content(self._numbers)
        self._mark = StopMatcher((MARK,))
        self._place = "outside"
        self._call: JsonCall | None = None
        self._arguments: JsonScanner | None = None
        self._name = ""

    def feed(self, text: str) -> Parts:
        """Take more text."""
        parts = Parts()
        while text:
            text = self._step(text, parts)
        return parts

    def finish(self) -> Parts:
        """What was held back, once no more text comes."""
        if self._place == "outside":
            parts = Parts()
            self._content.say(self._mark.flush(), parts)
            return parts
        if self._place == "name" and self._name:
            return Parts(content=MARK + self._name)
        if self._call is not None and not self._call.is_call:
            return Parts(content=self._call.text)
        return Parts()

    def _step(self, text: str, parts: Parts) -> str:
        if self._place == "outside":
            return self._outside(text, parts)
        if self._place == "array":
            return self._array(text, parts)
        if self._place == "name":
            return self._read_name(text, parts)
        return self._read_arguments(text, parts)

    def _outside(self, text: str, parts: Parts) -> str:
        content, found = self._mark.feed(text)
        self._content.say(content, parts)
        if found is None:
            return ""
        self._content.forget()
        self._place, self._name = "name", ""
        return self._mark.rest

    def _array(self, text: str, parts: Parts) -> str:
        if self._call is None:
            text = text.lstrip(" \t\r\n,")
            if not text:
                return ""
            if text[0] == "]":
                self._place = "outside"
                return text[1:]
            self._call = JsonCall(self._numbers)
        rest = self._call.feed(text, parts)
        if self._call.is_over:
            if not self._call.is_call:
                parts.content += self._call.text
                self._place = "outside"
            self._call = None
        return rest

    def _read_name(self, text: str, parts: Parts) -> str:
        self._name += text
        begin, behind = self._name[:_MAX_HEAD], self._name[_MAX_HEAD:]
        start = begin.lstrip()
        if start.startswith("[") and not _ARGS.startswith(start[: len(_ARGS)]):
            self._place = "array"
            return start[1:] + behind
        head, brace, rest = begin.partition("{")
        if not brace and len(begin) < _MAX_HEAD:
            return ""
        name = head.partition(_CALL_ID)[0].partition(_ARGS)[0].strip()
        if brace and 0 < len(name) <= _MAX_NAME:
            parts.calls.append(self._numbers.begin(name))
            self._arguments, self._place = JsonScanner(), "arguments"
        else:
            parts.content += MARK + head
            self._place = "outside"
        return brace + rest + behind

    def _read_arguments(self, text: str, parts: Parts) -> str:
        if self._arguments is None:
            return ""
        used = self._arguments.feed(text)
        if used:
            parts.calls.append(self._numbers.arguments(text[:used]))
        if self._arguments.is_done or self._arguments.is_broken:
            self._arguments, self._place = None, "outside"
        return text[used:]
