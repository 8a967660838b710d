"""Reasoning between <think> and </think>."""

from __future__ import annotations

from octavo.model.stop_matcher import StopMatcher

OPEN = "<think>"
CLOSE = "</think>"


class ReasoningParser:
    """Splits text into reasoning and content.

    Reasoning comes first or not at all; line breaks at its edges belong to neither part. A model
    that is made to think begins inside it: its prompt ends with the opening tag.

    Args:
        is_inside: The text begins inside reasoning.
    """

    def __init__(self, *, is_inside: bool) -> None:
        self._state = "inside" if is_inside else "before"
        self._held = ""  # before: what may be the opening tag; inside, after: line breaks
        self._close = StopMatcher((CLOSE,))
        self._is_at_edge = True

    def feed(self, text: str) -> tuple[str, str]:
        """Reasoning and content that are certain now."""
        thought = content = ""
        if self._state == "content":
            return "", text
        if self._state == "before":
            text, content = self._look_for_opening(text)
        if self._state == "inside":
            thought, text = self._think(text)
        if self._state == "after":
            content += self._after(text)
        return thought, content

    def finish(self) -> tuple[str, str]:
        """What was held back: no more text comes."""
        held, self._held = self._held, ""
        if self._state == "before":
            return "", held
        if self._state == "inside":
            rest = self._close.flush()
            return (held + rest if rest else ""), ""
        return "", ""

    def _look_for_opening(self, text: str) -> tuple[str, str]:
        """The text to think about, or the content when there is no reasoning."""
        self._held += text
        start = self._held.lstrip()
        if start.startswith(OPEN):
            self._state, self._held = "inside", ""
            return start.removeprefix(OPEN), ""
        if OPEN.startswith(start):
            return "", ""
        held, self._held, self._state = self._held, "", "content"
        return "", held

    def _think(self, text: str) -> tuple[str, str]:
        """Reasoning, and the text behind its end."""
        thought, found = self._close.feed(text)
        if self._is_at_edge:
            thought = thought.lstrip("\n")
            self._is_at_edge = not thought
        thought = self._held + thought
        trimmed = thought.rstrip("\n")
        self._held = thought[len(trimmed) :]
        if found is None:
            return trimmed, ""
        self._state, self._held, self._is_at_edge = "after", "", True
        return trimmed, self._close.rest

    def _after(self, text: str) -> str:
        if self._is_at_edge:
            text = text.lstrip("\n")
            self._is_at_edge = not text
        return text
