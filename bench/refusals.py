"""What refusing a request costs the HTTP worker: time, and memory beyond what it had.

    python bench/refusals.py

Each body is over a cap, most of them absurdly, and as large as the server reads. It goes to a real
front end before an engine that computes nothing; the worker's peak is the kernel's own (VmHWM, set
back before each request). The time holds reading the body over loopback, waiting for a core and
whatever else the machine does; the median of seven is shown.
"""

from __future__ import annotations

import http.client
import json
import re
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from frontend import Case, Server, front_end

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNS = 7
HUGE = 10**9
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
FUNCTION = {"type": "function", "function": {"name": "f"}}
MESSAGES = [{"role": "user", "content": "x"}]


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """Name, path and body of each."""
    plain: dict[str, dict[str, object]] = {
        "n = 129": {"n": 129},
        "n = 10^9": {"n": HUGE},
        "max_tokens = 10^9": {"max_tokens": HUGE},
        "logprobs = 10^9": {"logprobs": HUGE},
        "top_k = 10^30": {"top_k": 10**30},
        "17 stop strings": {"stop": ["x"] * 17},
        "1,000,000 stop strings": {"stop": ["x"] * 10**6},
        "a stop string of 20 MB": {"stop": "x" * (20 << 20)},
        "1,025 logit_bias": {"logit_bias": {str(i): 0 for i in range(1025)}},
        "1,000,000 logit_bias": {"logit_bias": {str(i): 0 for i in range(10**6)}},
        "1,000,000 bad_words": {"bad_words": ["word"] * 10**6},
        "1,000,000 allowed ids, one too large": {"allowed_token_ids": [*range(10**6), HUGE]},
        "1,025 prompts": {"prompt": ["x"] * 1025},
        "1,000,000 prompts": {"prompt": [[1]] * 10**6},
        "a prompt of 30 MB": {"prompt": "x " * (15 << 20)},
        "a prompt of 2,000,000 tokens": {"prompt": [5] * 2_000_000},
        "a schema of 65 KiB": {"structured_outputs": {"json": {"enum": ["x" * (65 << 10)]}}},
        "a regex of 10 MB": {"structured_outputs": {"regex": "a" * (10 << 20)}},
    }
    for name, fields in plain.items():
        yield name, COMPLETIONS, json.dumps({"prompt": "x", **fields}).encode()
    tools = {"messages": MESSAGES, "tools": [FUNCTION] * 100_000}
    yield "100,000 tools", CHAT, json.dumps(tools).encode()
    nested = b'{"prompt":"x","a":' + b"[" * 10**7 + b"]" * 10**7 + b"}"
    yield "10,000,000 nested arrays", COMPLETIONS, nested
    yield "a body of 33 MiB", COMPLETIONS, b" " * (33 << 20)
    yield "no JSON, 30 MB", COMPLETIONS, b'{"prompt":"' + b"x" * (30 << 20)


def memory_kb(worker: int, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{worker}/status").read_text())
    if found is None:
        raise RuntimeError(f"the kernel does not tell {name}")
    return int(found[1])


def refuse(server: Server, path: str, body: bytes) -> tuple[int, float, float]:
    """Status, milliseconds from the last byte of the head, MB above what was resident."""
    Path(f"/proc/{server.worker}/clear_refs").write_text("5")  # the peak begins anew
    before = memory_kb(server.worker, "VmRSS")
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    began = time.monotonic()
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    took_ms = (time.monotonic() - began) * 1e3
    connection.close()
    return answer.status, took_ms, (memory_kb(server.worker, "VmHWM") - before) / 1e3


def main() -> None:
    print(f"{'':38} {'body MB':>8} {'status':>6} {'ms':>8} {'MB':>8}")
    with front_end(Case(0.02, 1, 1, 1, max_model_len=8192)) as server:
        for name, path, body in bodies():
            runs = [refuse(server, path, body) for _ in range(RUNS)]
            status, took_ms, _ = (statistics.median(column) for column in zip(*runs, strict=True))
            peak = max(each[2] for each in runs)
            row = f"{name:38} {len(body) / 1e6:8.2f} {status:6.0f} {took_ms:8.1f} {peak:8.1f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
