"""Tool calls whose body is a JSON object, one at a time."""

from __future__ import annotations

import uuid

from octavo.server.parsers.answer import CallDelta, Parts
from octavo.server.parsers.call_scanner import CallScanner


class CallNumbers:
    """Numbers and names the calls of one answer.

    Args:
        id_length: Characters of an id; 0 for ids that begin with call_.
    """

    def __init__(self, id_length: int = 0) -> None:
        self.count = 0
        self._id_length = id_length

    def begin(self, name: str) -> CallDelta:
        """The first delta of the next call."""
        self.count += 1
        random = uuid.uuid4().hex
        id_ = random[: self._id_length] if self._id_length else f"call_{random[:24]}"
        return CallDelta(index=self.count - 1, id=id_, name=name)

    def arguments(self, text: str) -> CallDelta:
        """More arguments of the call that began last."""
        return CallDelta(index=self.count - 1, arguments=text)


class Content:
    """The text around calls. Once there was a call, white space alone is not worth telling."""

    def __init__(self, numbers: CallNumbers) -> None:
        self._numbers = numbers
        self._held = ""

    def say(self, text: str, parts: Parts) -> None:
        """Add text to parts, now or when more than white space has come."""
        text = self._held + text
        certain = text.rstrip() if self._numbers.count else text
        self._held = text[len(certain) :]
        parts.content += certain

    def forget(self) -> None:
        """Another call begins: what was held back stood only between two calls."""
        self._held = ""


class JsonCall:
    """The body of one call: {"name": …, "arguments": {…}}.

    Attributes:
        is_over: Complete, or found to be no call.
        is_call: Its name has been given out. Until then it may turn out to be plain text.
        text: What was read, while it may be plain text.
    """

    def __init__(self, numbers: CallNumbers) -> None:
        self._numbers = numbers
        self._scanner = CallScanner()
        self.is_call = False

    @property
    def is_over(self) -> bool:
        """Complete, or found to be no call."""
        return self._scanner.is_done or self._scanner.is_broken

    @property
    def text(self) -> str:
        """What was read, while it may be plain text."""
        return self._scanner.text

    def feed(self, text: str, parts: Parts) -> str:
        """Take text, add what it says of the call, return the text behind it."""
        used, arguments = self._scanner.feed(text)
        name = self._scanner.name
        if name is not None and not self.is_call:
            self.is_call = True
            parts.calls.append(self._numbers.begin(name))
        if arguments:
            parts.calls.append(self._numbers.arguments(arguments))
        return text[used:]
