"""Refusing requests while too many wait, for next to nothing.

Under overload most requests are refused, and what a refusal costs is taken from those that were
admitted. So a connection whose next request is to be refused is answered before HTTP is parsed,
with bytes made beforehand. Only requests whose end is beyond doubt are answered so: those that came
whole, with one Content-Length and nothing behind it. All others go the usual way, and so do those
of web pages: a page may read only an answer that names its origin.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from octavo.errors import QueueFullError
from octavo.server.connections import answer_bytes
from octavo.server.error_responses import error_body
from octavo.server.messages import message_error_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from octavo.server.connection import Connection

MAX_REQUEST_BYTES = 64 << 10  # longer ones are rare, and cost what they cost
_OPENAI_PATHS = (
    "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings",
)  # fmt: skip
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,6})(?=\r\n)")
_UNUSUAL = re.compile(
    rb"\r(?!\n)|(?<!\r)\n|\n[ \t]|\0"  # stray line ends, folded lines
    rb"|\r\n(?:transfer-encoding|expect|upgrade|proxy-connection|origin)[ \t]*:"
    rb"|\r\n(?:content-length|connection|host)[ \t]+:|\r\nconnection:(?! ?keep-alive\r\n)"
)


class Shedder:
    """Knows what is refused, and how.

    Args:
        is_full: Too many requests wait.
    """

    def __init__(self, is_full: Callable[[], bool]) -> None:
        error = QueueFullError("Too many requests are waiting. Try again later.")
        self._is_full = is_full
        self._refusals = dict.fromkeys(_OPENAI_PATHS, answer_bytes(error, error_body(error)))
        self._refusals["/v1/messages"] = answer_bytes(error, message_error_body(error))
        self._of_line = {
            f"POST {path} HTTP/1.1".encode(): answer for path, answer in self._refusals.items()
        }

    def refusal(self, method: str, path: str, headers: Iterable[tuple[str, str]]) -> bytes | None:
        """The answer to a request of which only this is known; None for the usual way.

        Args:
            method: In capitals.
            path: Without a query.
            headers: Their names in capitals.
        """
        if method != "POST" or not self._is_full() or any(name == "ORIGIN" for name, _ in headers):
            return None
        return self._refusals.get(path)

    def refuse_some(self, client: Connection, idle_timeout: float, send_timeout: float) -> bool:
        """Refuse a connection's requests until one is to be served.

        Args:
            client: Between two requests; what was read of one to be served is put back.
            idle_timeout: Seconds until the next request.
            send_timeout: Seconds for a refusal to leave.

        Returns:
            Whether there is more to be read; otherwise the connection is over.

        Raises:
            OSError: The client is gone, or does not read.
        """
        while self._is_full():
            client.settimeout(idle_timeout)
            try:
                data = client.recv(MAX_REQUEST_BYTES)
            except TimeoutError:
                return False
            answer = self._answer(data) if self._is_full() else None
            if answer is None:
                client.unread(data)
                return bool(data)
            client.settimeout(send_timeout)
            client.sendall(answer)
        return True

    def _answer(self, data: bytes) -> bytes | None:
        """The refusal of what is one whole, plain request and no more; None for all else."""
        line, _, _ = data.partition(b"\r\n")
        answer = self._of_line.get(line)
        if answer is None:
            return None
        end = data.find(_HEAD_END)
        head = data[len(line) : end + 2].lower()
        lengths = _LENGTH.findall(head)
        is_plain = (
            end >= 0
            and len(lengths) == head.count(b"\r\ncontent-length") == 1
            and head.count(b"\r\nhost:") == 1
            and not _UNUSUAL.search(head)
        )
        return answer if is_plain and len(data) - end - 4 == int(lengths[0]) else None
