"""Finding the end of a JSON value in text that comes in pieces."""

from __future__ import annotations

import re

_STRING_END = re.compile(r'["\\]')
_BRACKET = re.compile(r'["{}\[\]]')
_SCALAR_END = re.compile(r"[\s,\]}]")
_OPENING = "{["
_MAX_DEPTH = 128


class JsonScanner:
    """Finds where a value ends. Brackets and strings are followed, grammar is not checked.

    Attributes:
        is_done: The value is complete.
        is_broken: It nests too deeply.
    """

    def __init__(self) -> None:
        self.is_done = False
        self.is_broken = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._has_begun = False
        self._is_scalar = False

    def feed(self, text: str) -> int:
        """Take text that starts in the value; returns how many characters belong to it."""
        position = 0
        while position < len(text) and not (self.is_done or self.is_broken):
            if not self._has_begun:
                position = self._begin(text, position)
            elif self._in_string:
                position = self._string(text, position)
            elif self._is_scalar:
                position = self._scalar(text, position)
            else:
                position = self._brackets(text, position)
        return position

    def _begin(self, text: str, position: int) -> int:
        self._has_begun = True
        if text[position] == '"':
            self._in_string = True
            return position + 1
        if text[position] in _OPENING:
            self._depth = 1
            return position + 1
        self._is_scalar = True
        return position

    def _string(self, text: str, position: int) -> int:
        if self._is_escaped:
            self._is_escaped = False
            return position + 1
        match = _STRING_END.search(text, position)
        if match is None:
            return len(text)
        if match[0] == "\\":
            self._is_escaped = True
        else:
            self._in_string = False
            self.is_done = self._depth == 0
        return match.end()

    def _brackets(self, text: str, position: int) -> int:
        match = _BRACKET.search(text, position)
        if match is None:
            return len(text)
        if match[0] == '"':
            self._in_string = True
        elif match[0] in _OPENING:
            self._depth += 1
            self.is_broken = self._depth > _MAX_DEPTH
        else:
            self._depth -= 1
            self.is_done = self._depth == 0
        return match.end()

    def _scalar(self, text: str, position: int) -> int:
        """A number, true, false or null: what follows ends it."""
        match = _SCALAR_END.search(text, position)
        if match is None:
            return len(text)
        self.is_done = True
        return match.start()
