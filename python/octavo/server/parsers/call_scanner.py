"""One tool call written as a JSON object, streamed: {"name": …, "arguments": {…}}."""

from __future__ import annotations

import msgspec

from octavo.server.parsers.json_scanner import JsonScanner

_ARGUMENTS = frozenset({"arguments", "parameters"})
_MAX_NAME = 256

# Where the scanner stands and the character it meets, to where it stands then.
_FOLLOW = {
    ("open", "{"): "first key",
    ("first key", '"'): "key",
    ("first key", "}"): "end",
    ("next key", '"'): "key",
    ("colon", ":"): "before value",
    ("comma", ","): "next key",
    ("comma", "}"): "end",
}


class CallScanner:
    """Reads the object and gives out its arguments as they come.

    Attributes:
        name: The function, once it is known.
        is_done: The object is complete.
        is_broken: This is no tool call.
        text: Everything read so far, while the name is unknown.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.is_done = False
        self.is_broken = False
        self.text = ""
        self._place = "open"
        self._scanner = JsonScanner()
        self._value = ""  # of what is being read, unless it is given out at once
        self._key = ""
        self._arguments = ""  # not yet given out
        self._has_arguments = False
        self._is_streamed = False  # the value is an object of arguments

    def feed(self, text: str) -> tuple[int, str]:
        """Take text; returns how much of it belongs to the call, and new text of the arguments."""
        position = 0
        while position < len(text) and not (self.is_done or self.is_broken):
            if self._place in ("key", "value"):
                position = self._read(text, position)
            else:
                position = self._punctuation(text, position)
        if self.name is None:
            self.text += text[:position]
            return position, ""
        arguments, self._arguments = self._arguments, ""
        if self.is_done and not self._has_arguments:
            arguments = "{}"
        return position, arguments

    def _punctuation(self, text: str, position: int) -> int:
        if text[position].isspace():
            return position + 1
        if self._place == "before value":
            self._place = "value"
        else:
            self._place = _FOLLOW.get((self._place, text[position]), "nowhere")
        if self._place in ("key", "value"):
            self._scanner, self._value = JsonScanner(), ""
            is_text = text[position] == '"'  # as every key is
            self._is_streamed = self._key in _ARGUMENTS and not is_text
            return position
        self.is_broken = self._place == "nowhere" or (self._place == "end" and self.name is None)
        self.is_done = self._place == "end" and not self.is_broken
        return position + 1

    def _read(self, text: str, position: int) -> int:
        used = self._scanner.feed(text[position:])
        piece = text[position : position + used]
        if self._is_streamed:
            self._arguments += piece
            self._has_arguments = True
        else:
            self._value += piece
        if self._scanner.is_done:
            self._take()
        self.is_broken = self.is_broken or self._scanner.is_broken
        return position + used

    def _take(self) -> None:
        """Use the key or value that has just ended."""
        if self._place == "key":
            self._key = self._decode()
            self._place = "colon"
            return
        self._place = "comma"
        if self._key == "name":
            self._take_name()
        elif (
            self._key in _ARGUMENTS and not self._is_streamed
        ):  # some models write the object as a string
            self._arguments += self._decode() or "{}"
            self._has_arguments = True

    def _take_name(self) -> None:
        """The first name counts: it may have been given out before another comes."""
        name = self._decode()
        if self.name is not None:
            return
        self.is_broken = not 0 < len(name) <= _MAX_NAME
        self.name = None if self.is_broken else name

    def _decode(self) -> str:
        try:
            return msgspec.json.decode(self._value, type=str)
        except msgspec.DecodeError:
            self.is_broken = True
            return ""
