"""The parts of an answer, and the chain of parsers that finds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from octavo.server.parsers.reasoning import ReasoningParser


@dataclass(slots=True)
class CallDelta:
    """What is new of one tool call.

    Attributes:
        index: The call's number in the answer.
        id: In the call's first delta.
        name: In the call's first delta.
        arguments: More of the arguments' JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class Parts:
    """What is new of an answer."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.calls)

    @property
    def is_only_content(self) -> bool:
        """Content and nothing else."""
        return bool(self.content) and not (self.reasoning or self.calls)

    def extend(self, later: Parts) -> None:
        """Append what came later."""
        self.content += later.content
        self.reasoning += later.reasoning
        self.calls += later.calls


class ToolParser(Protocol):
    """Finds tool calls in the content."""

    def feed(self, text: str) -> Parts:
        """Take more text."""

    def finish(self) -> Parts:
        """What was held back, once no more text comes."""


# Tool parsers cut what they have used off the front, so pieces are kept short.
_LONGEST_PIECE = 1024


class AnswerParser:
    """Splits one choice's text: reasoning first, then content and tool calls.

    Args:
        reasoning: None leaves reasoning in the content.
        tools: None leaves tool calls in the content.
    """

    def __init__(self, reasoning: ReasoningParser | None, tools: ToolParser | None) -> None:
        self._reasoning = reasoning
        self._tools = tools

    def feed(self, text: str) -> Parts:
        """Take more text."""
        if self._reasoning is None:
            return self._content(text) if self._tools else Parts(text)
        thought, content = self._reasoning.feed(text)
        parts = self._content(content)
        parts.reasoning = thought
        return parts

    def finish(self) -> Parts:
        """What was held back, once no more text comes."""
        thought, content = ("", "") if self._reasoning is None else self._reasoning.finish()
        parts = self._content(content)
        parts.reasoning = thought
        if self._tools is not None:
            parts.extend(self._tools.finish())
        return parts

    def _content(self, text: str) -> Parts:
        if self._tools is None:
            return Parts(content=text)
        parts = Parts()
        for begin in range(0, len(text), _LONGEST_PIECE):
            parts.extend(self._tools.feed(text[begin : begin + _LONGEST_PIECE]))
        return parts
