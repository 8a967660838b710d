"""Responses that later requests may ask for or go on from."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.server.schemas.chat import ChatMessage

MAX_RESPONSES = 1024
MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A finished response.

    Attributes:
        body: As it was answered.
        messages: The conversation up to and with its answer, without instructions.
        num_bytes: What it costs to keep, near enough.
    """

    body: bytes
    messages: Sequence[ChatMessage]
    num_bytes: int


class ResponseStore:
    """The latest responses of this process; the oldest make room.

    Workers share no memory for it, so a server with several of them keeps nothing.
    """

    def __init__(self, *, is_enabled: bool) -> None:
        self.is_enabled = is_enabled
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._num_bytes = 0

    def get(self, id_: str) -> StoredResponse | None:
        """A response that is still kept."""
        return self._responses.get(id_)

    def put(self, id_: str, response: StoredResponse) -> None:
        """Keep a response as long as there is room."""
        if not self.is_enabled or response.num_bytes > MAX_BYTES // 4:
            return
        self._responses[id_] = response
        self._num_bytes += response.num_bytes
        while len(self._responses) > MAX_RESPONSES or self._num_bytes > MAX_BYTES:
            _, oldest = self._responses.popitem(last=False)
            self._num_bytes -= oldest.num_bytes

    def remove(self, id_: str) -> bool:
        """Forget a response; False where it is not kept."""
        response = self._responses.pop(id_, None)
        if response is not None:
            self._num_bytes -= response.num_bytes
        return response is not None
