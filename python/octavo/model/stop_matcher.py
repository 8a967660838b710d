"""Stop strings, found in text that comes in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopMatcher:
    """Finds the first of several strings in text that comes in pieces.

    One Knuth-Morris-Pratt state a string: the state is how much of the end of the text may be the
    beginning of that string, so the longest state is what has to be held back. Its cost is linear
    in the text whatever the strings are.

    Attributes:
        rest: Text behind the string that was found.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._fallbacks = tuple(_prefix_function(string) for string in self._strings)
        self._first = frozenset(string[0] for string in self._strings)
        self._states = [0] * len(self._strings)
        self._held = ""
        self.rest = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take more text; returns the text that is certain and the string found, if one was.

        The text ends where the string begins. When several strings end at the same character, the
        longest counts.
        """
        if not self._held and self._first.isdisjoint(text):
            return text, None
        window = self._held + text
        for end in range(len(self._held), len(window)):
            found = self._advance(window[end])
            if found is not None:
                self._held = ""
                self.rest = window[end + 1 :]
                return window[: end + 1 - len(found)], found
        keep = len(window) - max(self._states)
        self._held = window[keep:]
        return window[:keep], None

    def flush(self) -> str:
        """What was held back: it did not become a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        found: str | None = None
        for index, string in enumerate(self._strings):
            state = self._states[index]
            while state and string[state] != character:
                state = self._fallbacks[index][state - 1]
            if string[state] == character:
                state += 1
            if state == len(string):
                found = string if found is None or len(string) > len(found) else found
            self._states[index] = state
        if found is not None:
            self._states = [0] * len(self._strings)
        return found


def _prefix_function(string: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(string)
    length = 0
    for index in range(1, len(string)):
        while length and string[index] != string[length]:
            length = table[length - 1]
        if string[index] == string[length]:
            length += 1
        table[index] = length
    return table
