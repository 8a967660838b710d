"""Answers every streamed completion at once: the ceiling of a load client, with no model behind.

    python bench/null_stream_server.py 8999 &
    octavo bench serve --url http://127.0.0.1:8999 --model null --fixed 64,512 \
        --num-requests 512 --concurrency 64

Each event is one HTTP chunk and one send(), and the streams take turns, so a client sees what a
fast server with one event a token would give it. `events` in the output over `duration_s` is what
the client took in.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(fields: dict[str, object]) -> bytes:
    head = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": 1700000000}
    return chunk(b"data: " + json.dumps({**head, "model": "null", **fields}).encode() + b"\n\n")


TOKEN = event(
    {"choices": [{"index": 0, "text": " token", "logprobs": None, "finish_reason": None}]}
)


def last_events(num_prompt: int, num_output: int) -> bytes:
    usage = {"prompt_tokens": num_prompt, "completion_tokens": num_output}
    done = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return event({"choices": [], "usage": usage}) + done


class Stream:
    """A connection, the request that comes in on it, and the events still owed."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.left = 0
        self.counts = (0, 0)

    def receive(self) -> bool:
        data = self.sock.recv(1 << 20)
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        if separator:
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            if len(body) >= length:
                self.received = body[length:]
                if length:
                    self.begin(json.loads(body[:length]))
                else:  # a probe: a server without one counts as ready
                    self.sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return bool(data)

    def begin(self, request: dict[str, object]) -> None:
        self.left = int(str(request["max_tokens"]))
        self.counts = (len(list(request["prompt"])), self.left)  # type: ignore[call-overload]
        self.sock.sendall(HEAD)

    def send_one(self) -> None:
        self.left -= 1
        self.sock.sendall(TOKEN if self.left else TOKEN + last_events(*self.counts))


def main() -> None:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    streams: dict[int, Stream] = {}
    while True:
        active = [s for s in streams.values() if s.left]
        for stream in active:
            with contextlib.suppress(OSError):
                stream.send_one()
        for fd, _ in poll.poll(0 if active else -1):
            if fd == listener.fileno():
                sock = listener.accept()[0]
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                streams[sock.fileno()] = Stream(sock)
                poll.register(sock, select.EPOLLIN)
            elif not streams[fd].receive():
                poll.unregister(fd)
                streams.pop(fd).sock.close()


if __name__ == "__main__":
    main()
