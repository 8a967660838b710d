"""A server that takes its time: `late_server.py PORT [FAULT]`.

It binds after 0.2 s, says for 0.3 s that it loads and for 0.2 s that it warms up, then it is ready.
Its first completion takes 60 ms longer than the others. FAULT: die, stuck, stubborn, rude.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STARTED = time.monotonic()
FAULT = sys.argv[2] if len(sys.argv) > 2 else ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    asked = 0

    def log_message(self, format: str, *words: object) -> None:  # noqa: A002
        pass

    def answer(self, status: int, fields: object) -> None:
        data = json.dumps(fields).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        age = time.monotonic() - STARTED
        if self.path == "/v1/models":
            self.answer(200, {"data": [{"id": "late"}]})
        elif age < 0.5 or FAULT == "stuck":
            self.answer(503, {"status": "loading", "phase": "loading_weights"})
        elif age < 0.7:
            self.answer(503, {"status": "loading", "phase": "warming_up"})
        else:
            self.answer(200, {"status": "healthy"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if FAULT == "rude":
            self.answer(500, {"error": {"message": "not today"}})
            return
        Handler.asked += 1
        if Handler.asked == 1:
            time.sleep(0.06)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        events = [{"choices": [{"text": "a"}]}] * body["max_tokens"]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(events)}
        text = "".join(f"data: {json.dumps(e)}\n\n" for e in [*events, {"usage": usage}])
        data = f"{text}data: [DONE]\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))


if __name__ == "__main__":
    if FAULT == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(0.2)
    if FAULT == "die":
        sys.exit("the model is not there")
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever(0.05)
