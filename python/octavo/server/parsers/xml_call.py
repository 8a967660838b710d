"""Tool calls whose body is written with tags, as Qwen's coder models do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.model.stop_matcher import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from octavo.server.parsers.answer import Parts
    from octavo.server.parsers.tool_calls import CallNumbers

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_MAX_NAME = 256


class XmlCall:
    """<function=NAME><parameter=KEY>VALUE</parameter>…</function>, streamed a parameter at a time.

    A value is JSON where the function's schema wants another type than a string, and its text
    otherwise.

    Attributes:
        is_over: Complete, or found to be no call.
        is_call: Its name has been given out. Until then it may turn out to be plain text.
        text: What was read, while it may be plain text.
    """

    def __init__(self, numbers: CallNumbers, schemas: Mapping[str, Any]) -> None:
        self._numbers = numbers
        self._schemas = schemas
        self._types: Mapping[str, Any] = {}
        self._num_matched = 0  # characters of <function=
        self._next = StopMatcher((_PARAMETER, _FUNCTION_END))
        self._step: Callable[[str, Parts], str] = self._find_function
        self._collected = ""
        self._key = ""
        self._num_parameters = 0
        self.text = ""
        self.is_call = False
        self.is_over = False

    def feed(self, text: str, parts: Parts) -> str:
        """Take text, add what it says of the call, return the text behind it."""
        while text and not self.is_over:
            before = text
            text = self._step(text, parts)
            if not self.is_call:
                self.text += before[: len(before) - len(text)]
        return text

    def _find_function(self, text: str, _: Parts) -> str:
        for position, character in enumerate(text):
            if character == _FUNCTION[self._num_matched]:
                self._num_matched += 1
            elif self._num_matched or not character.isspace():
                self.is_over = True
                return text[position:]
            if self._num_matched == len(_FUNCTION):
                self._step = self._read_function
                return text[position + 1 :]
        return ""

    def _read_function(self, text: str, parts: Parts) -> str:
        name, is_complete, rest = self._read_name(text)
        if is_complete and not name:
            self.is_over = True
        elif is_complete:
            self.is_call = True
            schema = self._schemas.get(name)
            properties = schema.get("properties") if isinstance(schema, dict) else None
            self._types = properties if isinstance(properties, dict) else {}
            parts.calls.append(self._numbers.begin(name))
            self._step = self._find_parameter
        return rest

    def _find_parameter(self, text: str, parts: Parts) -> str:
        _, found = self._next.feed(text)
        if found is None:
            return ""
        if found == _FUNCTION_END:
            parts.calls.append(self._numbers.arguments("}" if self._num_parameters else "{}"))
            self.is_over = True
        else:
            self._step = self._read_parameter
        return self._next.rest

    def _read_parameter(self, text: str, _: Parts) -> str:
        name, is_complete, rest = self._read_name(text)
        if is_complete:
            self._key = name
            self._seek((_PARAMETER_END,))
            self._step = self._read_value
        return rest

    def _read_value(self, text: str, parts: Parts) -> str:
        value, found = self._next.feed(text)
        self._collected += value
        if found is None:
            return ""
        separator = ", " if self._num_parameters else "{"
        self._num_parameters += 1
        pair = f"{_json(self._key)}: {self._converted(_unframed(self._collected))}"
        parts.calls.append(self._numbers.arguments(separator + pair))
        self._collected = ""
        rest = self._next.rest
        self._seek((_PARAMETER, _FUNCTION_END))
        self._step = self._find_parameter
        return rest

    def _read_name(self, text: str) -> tuple[str, bool, str]:
        """The name up to >, whether it is complete, and the text behind."""
        name, end, rest = text.partition(">")
        room = _MAX_NAME - len(self._collected)
        self._collected += name[:room]
        if len(name) > room:
            self.is_over = True
            return "", False, text[room:]
        if not end:
            return "", False, ""
        name, self._collected = self._collected.strip(), ""
        return name, True, rest

    def _seek(self, strings: tuple[str, ...]) -> None:
        self._next = StopMatcher(strings)

    def _converted(self, value: str) -> str:
        """The value as JSON."""
        schema = self._types.get(self._key)
        wanted = schema.get("type") if isinstance(schema, dict) else None
        if wanted == "string":
            return _json(value)
        try:
            return _json(msgspec.json.decode(value))
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return _json(value)


def _unframed(value: str) -> str:
    """A value stands on lines of its own."""
    return value.removeprefix("\n").removesuffix("\n")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
