"""How long a server takes to answer its probes while it is busy.

    octavo serve smollm2 --max-num-seqs 256 &
    python bench/probe_latency.py --url http://127.0.0.1:8000

Each probe has a connection of its own, as Kubernetes' have. `lateness` is how late (p99) this
program itself came back from its sleeps: what a probe waits for a core on the client's side is of
that size, and is part of the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import random
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from octavo.bench.load import LoadGenerator, Target
from octavo.bench.report import summary
from octavo.bench.startup import model_name
from octavo.bench.workloads import fixed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PERIOD_S = 0.02
SETTLE_S = 3.0
STREAM_IN, STREAM_OUT = 32, 2048
PROMPT_TOKENS = 30_000
SYLLABLES = [
    "ka",
    "to",
    "ri",
    "men",
    "sol",
    "vi",
    "ter",
    "an",
    "pe",
    "lo",
    "gra",
    "du",
    "shi",
    "con",
]


def request(url: str, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    with contextlib.closing(connection):
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()


def long_prompt(url: str) -> str:
    """Made-up words, most of them different, of PROMPT_TOKENS tokens or a few more."""
    draw = random.Random(5)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) for _ in range(PROMPT_TOKENS)]
    text = " ".join(words)
    count = int(json.loads(request(url, "POST", "/tokenize", {"prompt": text})[1])["count"])
    return text[: len(text) * PROMPT_TOKENS // count]


def stream(url: str, count: int) -> None:
    items = fixed(100 * count, STREAM_IN, STREAM_OUT)
    LoadGenerator(Target(url, model_name(url))).run(items, concurrency=count)


def tokenise(url: str, text: str) -> None:
    while True:
        request(url, "POST", "/tokenize", {"prompt": text})


@contextlib.contextmanager
def running(*loads: tuple[Callable[..., None], tuple[object, ...]]) -> Iterator[None]:
    processes = [
        multiprocessing.Process(target=work, args=arguments, daemon=True)
        for work, arguments in loads
    ]
    for process in processes:
        process.start()
    time.sleep(SETTLE_S)
    try:
        yield
        assert all(process.is_alive() for process in processes), "a load ended early"
    finally:
        for process in processes:
            process.kill()
            process.join()


def measure(url: str, path: str, seconds: float) -> dict[str, object]:
    answer_ms, late_ms, bad = [], [], 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        asleep = time.monotonic()
        time.sleep(PERIOD_S)
        begun = time.monotonic()
        late_ms.append((begun - asleep - PERIOD_S) * 1e3)
        status, _ = request(url, "GET", path)
        answer_ms.append((time.monotonic() - begun) * 1e3)
        bad += status != 200
    late = summary(late_ms)["p99"]
    return {"probes": len(answer_ms), "not_200": bad, **summary(answer_ms), "lateness": late}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--path", default="/health")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    arguments = parser.parse_args()
    url = arguments.url
    streams = (stream, (url, arguments.streams))
    text = (tokenise, (url, long_prompt(url)))
    cases = {"idle": [], f"{arguments.streams} streams": [streams],
             f"encoding {PROMPT_TOKENS} tokens": [text], "both": [streams, text]}  # fmt: skip
    columns = ("probes", "not_200", "p50", "p90", "p99", "max", "lateness")
    print(f"{'ms':<24}" + "".join(f"{name:>9}" for name in columns))
    for name, loads in cases.items():
        with running(*loads):
            got = measure(url, arguments.path, arguments.seconds)
        print(f"{name:<24}" + "".join(f"{got[key]:9.3g}" for key in columns), flush=True)
        time.sleep(SETTLE_S)


if __name__ == "__main__":
    main()
