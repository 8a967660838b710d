"""The items of a response's output, and the events that tell of them, from the parts of a chat."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from octavo.server.schemas.responses import OutputItem, OutputPart
from octavo.server.sse import named_event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.server.parsers.answer import CallDelta, Parts


class ItemWriter:
    """Builds the output item by item; each step yields its events.

    Attributes:
        items: The output so far. At most the last one is still in progress.
    """

    def __init__(self) -> None:
        self.items: list[OutputItem] = []
        self._texts: list[str] = []  # of the item in progress
        self._logprobs: list[Any] = []
        self._sequence_number = 0
        self._is_open = False

    def event(self, kind: str, **fields: Any) -> bytes:
        """The next event."""
        data = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return named_event(kind, data)

    def take(self, parts: Parts, logprobs: list[Any]) -> Iterator[bytes]:
        """Add parts of the answer."""
        if parts.reasoning:
            yield from self._enter("reasoning", "rs")
            yield self._text_delta("response.reasoning_text.delta", parts.reasoning)
        if parts.content:
            yield from self._enter("message", "msg")
            self._logprobs += logprobs
            yield self._text_delta("response.output_text.delta", parts.content, logprobs=logprobs)
        for call in parts.calls:
            yield from self._take_call(call)

    def finish(self, status: str) -> Iterator[bytes]:
        """End the item in progress."""
        if not self._is_open:
            return
        item, text = self.items[-1], "".join(self._texts)
        self._is_open = False
        self._texts = []
        item.status = status
        if item.type == "function_call":
            item.arguments = text
            place = self._place(item)
            yield self.event(
                "response.function_call_arguments.done", **place, name=item.name, arguments=text
            )
        else:
            yield from self._finish_text(item, text)
        yield self.event("response.output_item.done", output_index=len(self.items) - 1, item=item)

    def _enter(self, kind: str, prefix: str) -> Iterator[bytes]:
        """Make sure that the item in progress is one of this kind."""
        if self._is_open and self.items[-1].type == kind:
            return
        yield from self.finish("completed")
        item = OutputItem(id=f"{prefix}_{uuid.uuid4().hex}", type=kind)
        part = _new_part(kind)
        if kind == "message":
            item.role = "assistant"
        else:
            item.summary = []
        item.content = []
        yield from self._add(item)
        yield self.event(
            "response.content_part.added", **self._place(item, content=True), part=part
        )

    def _take_call(self, call: CallDelta) -> Iterator[bytes]:
        if call.name is not None:
            yield from self.finish("completed")
            item = OutputItem(
                id=f"fc_{uuid.uuid4().hex}",
                type="function_call",
                call_id=call.id or "",
                name=call.name,
                arguments="",
            )
            yield from self._add(item)
        if call.arguments:
            self._texts.append(call.arguments)
            place = self._place(self.items[-1])
            yield self.event(
                "response.function_call_arguments.delta", **place, delta=call.arguments
            )

    def _add(self, item: OutputItem) -> Iterator[bytes]:
        self.items.append(item)
        self._is_open = True
        yield self.event("response.output_item.added", output_index=len(self.items) - 1, item=item)

    def _text_delta(self, kind: str, text: str, **fields: Any) -> bytes:
        self._texts.append(text)
        place = self._place(self.items[-1], content=True)
        return self.event(kind, **place, delta=text, **fields)

    def _finish_text(self, item: OutputItem, text: str) -> Iterator[bytes]:
        part = _new_part(item.type)
        part.text = text
        fields: dict[str, Any] = {}
        if item.type == "message":
            part.logprobs = fields["logprobs"] = self._logprobs
            self._logprobs = []
        item.content = [part]
        place = self._place(item, content=True)
        name = "output" if item.type == "message" else "reasoning"
        yield self.event(f"response.{name}_text.done", **place, text=text, **fields)
        yield self.event("response.content_part.done", **place, part=part)

    def _place(self, item: OutputItem, *, content: bool = False) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": item.id, "output_index": len(self.items) - 1}
        return {**place, "content_index": 0} if content else place


def _new_part(kind: str) -> OutputPart:
    if kind == "message":
        return OutputPart(type="output_text", annotations=[], logprobs=[])
    return OutputPart(type="reasoning_text", annotations=UNSET)
