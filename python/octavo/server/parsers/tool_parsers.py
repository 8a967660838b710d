"""Tool calls in the formats that models write."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from octavo.model.stop_matcher import StopMatcher
from octavo.server.parsers.answer import CallDelta, Parts
from octavo.server.parsers.call_scanner import CallScanner

if TYPE_CHECKING:
    from collections.abc import Callable

_BLANK = " \t\r\n"


class CallNumbers:
    """Numbers and names the calls of one answer.

    Args:
        id_length: Characters of an id without prefix; 0 for ids that begin with call_.
    """

    def __init__(self, id_length: int = 0) -> None:
        self.count = 0
        self._id_length = id_length

    def begin(self, name: str) -> CallDelta:
        """The first delta of the next call."""
        self.count += 1
        random = uuid.uuid4().hex
        id_ = random[: self._id_length] if self._id_length else f"call_{random}"
        return CallDelta(index=self.count - 1, id=id_, name=name)


class JsonCalls:
    """Calls as JSON objects, one after another, with something between them.

    A caller feeds the text of one object at a time; what is no call comes back as content.
    """

    def __init__(self, numbers: CallNumbers) -> None:
        self._numbers = numbers
        self._scanner: CallScanner | None = None
        self._has_begun = False

    @property
    def is_open(self) -> bool:
        """Inside an object."""
        return self._scanner is not None

    def feed(self, text: str, parts: Parts) -> str:
        """Take text; add what it says to parts; returns the text behind the object."""
        if self._scanner is None:
            self._scanner, self._has_begun = CallScanner(), False
        scanner = self._scanner
        used, arguments = scanner.feed(text)
        if scanner.name is not None and not self._has_begun:
            self._has_begun = True
            parts.calls.append(self._numbers.begin(scanner.name))
        if arguments:
            index = self._numbers.count - 1
            parts.calls.append(CallDelta(index=index, arguments=arguments))
        if scanner.is_broken and not self._has_begun:
            parts.content += scanner.text
        if scanner.is_done or scanner.is_broken:
            self._scanner = None
        return text[used:]

    def finish(self, parts: Parts) -> None:
        """No more text comes: an object that never said its name is content."""
        if self._scanner is not None and not self._has_begun:
            parts.content += self._scanner.text
        self._scanner = None


class HermesParser:
    """<tool_call>{"name": …, "arguments": {…}}</tool_call>, as Hermes and Qwen models write it."""

    OPEN, CLOSE = "<tool_call>", "</tool_call>"

    def __init__(self) -> None:
        self._matcher = StopMatcher((self.OPEN,))
        self._calls = JsonCalls(CallNumbers())
        self._place: Callable[[str, Parts], str] = self._outside
        self._blank = ""

    def feed(self, text: str) -> Parts:
        """Take more text."""
        parts = Parts()
        while text:
            text = self._place(text, parts)
        return parts

    def finish(self) -> Parts:
        """What was held back."""
        parts = Parts()
        if self._place == self._inside:
            self._calls.finish(parts)
        elif self._place == self._outside:
            parts.content = self._matcher.flush()
        return parts

    def _outside(self, text: str, parts: Parts) -> str:
        content, found = self._matcher.feed(text)
        parts.content += content
        if found is None:
            return ""
        if found == self.OPEN:
            self._place = self._inside
        return self._matcher.rest

    def _inside(self, text: str, parts: Parts) -> str:
        rest = self._calls.feed(text, parts)
        if not self._calls.is_open:
            self._matcher = StopMatcher((self.CLOSE, self.OPEN))
            self._place = self._behind
        return rest

    def _behind(self, text: str, parts: Parts) -> str:
        """Between an object and the closing tag there is nothing to tell."""
        _, found = self._matcher.feed(text)
        if found is None:
            return ""
        rest = self._matcher.rest
        self._place = self._inside if found == self.OPEN else self._outside
        self._matcher = StopMatcher((self.OPEN,))
        return rest
