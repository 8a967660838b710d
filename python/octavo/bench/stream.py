"""Takes a streamed completion answer apart as its bytes arrive."""

from __future__ import annotations

from array import array

import msgspec


class BrokenAnswerError(Exception):
    """The bytes are no HTTP answer, or the connection ended inside it."""


class _Choice(msgspec.Struct):
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | str | None = None


_decode = msgspec.json.Decoder(_Event).decode


class CompletionStream:
    """One answer: bytes in, event times and counts out.

    Attributes:
        event_s: Arrival time of each event that carried a choice.
        num_prompt_tokens: From `usage`.
        num_output_tokens: From `usage`, or the number of events where the server sends none.
        error: Why the answer is not whole, or empty.
        done: The last byte of the answer has come.
        reusable: The connection may carry another request.
    """

    __slots__ = ("_body", "_buffer", "_chunked", "_left", "_status", "_text", "done", "error",
                 "event_s", "num_output_tokens", "num_prompt_tokens", "reusable")  # fmt: skip

    def __init__(self) -> None:
        self.event_s = array("d")
        self.num_prompt_tokens = 0
        self.num_output_tokens = 0
        self.error = ""
        self.done = False
        self.reusable = True
        self._buffer = b""  # bytes whose meaning is not yet known: a head or a chunk, begun
        self._text = b""  # of the body, an event that has begun
        self._status = 0
        self._chunked = False
        self._left = -1  # of a body that is not chunked, bytes to come; -1 is until the close
        self._body = b""  # of an answer that is no stream

    @property
    def untouched(self) -> bool:
        """No byte of the answer has come."""
        return not self._status and not self._buffer

    def feed(self, data: bytes, now_s: float) -> None:
        """Take in the next bytes; no bytes are the end of the connection.

        Raises:
            BrokenAnswerError: This is no HTTP answer, or it ended early.
        """
        if not data:
            self._end_of_connection()
            return
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if not self._status:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            self._read_head(data[:end])
            data = data[end + 4 :]
        if self._chunked:
            self._read_chunks(data, now_s)
        else:
            self._read_plain(data, now_s)

    def _end_of_connection(self) -> None:
        self.reusable = False
        if not self._status or self._chunked or self._left > 0:
            raise BrokenAnswerError("the server closed the connection inside the answer")
        self._finish()

    def _read_head(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        try:
            self._status = int(lines[0].split(b" ")[1])
        except (IndexError, ValueError):
            raise BrokenAnswerError(f"not an HTTP answer: {lines[0][:60]!r}") from None
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            name, value = name.strip().lower(), value.strip().lower()
            if name == b"transfer-encoding":
                self._chunked = value == b"chunked"
            elif name == b"content-length":
                self._left = int(value)
            elif name == b"connection" and value == b"close":
                self.reusable = False

    def _read_chunks(self, data: bytes, now_s: float) -> None:
        position, size = 0, len(data)
        while True:
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                break
            length = _chunk_size(data, position, line_end)
            end = line_end + 2 + length
            if size < end + 2:
                break
            if length == 0:
                self._finish()
                return
            self._read_text(data[line_end + 2 : end], now_s)
            position = end + 2
        self._buffer = data[position:]

    def _read_plain(self, data: bytes, now_s: float) -> None:
        self._read_text(data, now_s)
        if self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._finish()

    def _read_text(self, text: bytes, now_s: float) -> None:
        if self._status != 200:
            self._body += text
            return
        if self._text:
            text = self._text + text
        *events, self._text = text.split(b"\n\n")
        for event in events:
            if event.startswith(b"data: {"):
                self._read_event(event[6:], now_s)

    def _read_event(self, event: bytes, now_s: float) -> None:
        try:
            decoded = _decode(event)
        except msgspec.DecodeError as error:
            raise BrokenAnswerError(f"an event is not what a completion sends: {error}") from None
        if decoded.choices:
            self.event_s.append(now_s)
        if decoded.usage is not None:
            self.num_prompt_tokens = decoded.usage.prompt_tokens
            self.num_output_tokens = decoded.usage.completion_tokens
        if decoded.error is not None:
            error_ = decoded.error
            self.error = error_ if isinstance(error_, str) else error_.message

    def _finish(self) -> None:
        self.done = True
        if self._status != 200:
            self.error = f"HTTP {self._status}: {_message(self._body)}"
        elif not self.event_s and not self.error:
            self.error = "the answer held no event"
        if not self.num_output_tokens:
            self.num_output_tokens = len(self.event_s)


def _chunk_size(data: bytes, start: int, end: int) -> int:
    try:
        return int(data[start:end].partition(b";")[0], 16)
    except ValueError:
        raise BrokenAnswerError("a chunk's length is no number") from None


def _message(body: bytes) -> str:
    """The error message of an answer that is no stream, as far as it says one."""
    try:
        decoded = _decode(body)
    except msgspec.DecodeError:
        return body[:200].decode(errors="replace")
    if isinstance(decoded.error, _Error):
        return decoded.error.message
    return decoded.error or body[:200].decode(errors="replace")
