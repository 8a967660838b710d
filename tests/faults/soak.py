"""Soak: hours of mixed load, and whether anything grows.

    PYTHONPATH=python:tests python -m faults.soak --minutes 60 --trace FILE.csv --out DIRECTORY

The load: streams with the lengths of a trace (cut to what a tiny model does in a moment), clients
that go away, that read slowly, that send nonsense. Beside it a canary. Every few seconds memory,
descriptors, free blocks and the canary's gaps are written down; the report gives slopes.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2e.serving import launcher
from e2e.tiny_model import make_tiny_model
from faults.odd_values import odd_request
from faults.plot import plot
from faults.wire import (
    ADMIN_KEY,
    Canary,
    baseline,
    connect,
    counters,
    num_descriptors,
    post,
    read_all,
    statuses,
)

if TYPE_CHECKING:
    from e2e.serving import Server

FLAGS = (
    "--enable-admin", "--client-timeout", "2", "--keep-alive-timeout", "2",
    "--disable-log-requests", "--scheduling-policy", "priority", "--max-num-seqs", "32",
)  # fmt: skip
NUM_CLIENTS = 6
WARM_UP_SHARE = 0.25
MAX_PROMPT, MAX_OUTPUT = 512, 128


def lengths(trace: Path | None) -> list[tuple[int, int]]:
    """Prompt and output lengths of a trace, or a few that are like it."""
    if trace is None:
        return [(374, 44), (396, 109), (879, 55), (91, 16), (1313, 142), (200, 300)]
    with trace.open() as file:
        rows = list(csv.DictReader(file))
    return [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows]


class Load:
    """The clients. Each does one thing after another until stop()."""

    def __init__(self, server: Server, sizes: list[tuple[int, int]]) -> None:
        self._server = server
        self._sizes = sizes
        self._is_over = threading.Event()
        self.counts: dict[str, int] = {}
        self.faults: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(NUM_CLIENTS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, once each client has finished what it does."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, index: int) -> None:
        chance = random.Random(index)
        deeds = [self._read, self._cancel, self._read_slowly, self._be_odd, self._send_noise]
        while not self._is_over.is_set():
            deed = chance.choices(deeds, weights=[60, 15, 2, 15, 8])[0]
            name = deed.__name__.strip("_")
            self.counts[name] = self.counts.get(name, 0) + 1
            try:
                deed(chance)
            except OSError as error:
                self.faults.append(f"{name}: {error!r}")
            self._is_over.wait(chance.expovariate(20))

    def _body(self, chance: random.Random) -> dict[str, Any]:
        num_prompt, num_output = chance.choice(self._sizes)
        prompt = [chance.randrange(2, 258) for _ in range(max(1, min(num_prompt, MAX_PROMPT)))]
        output = max(1, min(num_output, MAX_OUTPUT))
        return {"prompt": prompt, "max_tokens": output, "stream": True, "ignore_eos": True}

    def _read(self, chance: random.Random) -> None:
        with connect(self._server, 60) as connection:
            connection.sendall(post("/v1/completions", self._body(chance), "Connection: close"))
            received = read_all(connection)
        if statuses(received) != [200] or b"[DONE]" not in received[-40:]:
            self.faults.append(f"read: {received[-200:]!r}")

    def _cancel(self, chance: random.Random) -> None:
        with connect(self._server, 60) as connection:
            connection.sendall(post("/v1/completions", {**self._body(chance), "n": 2}))
            self._is_over.wait(chance.random() * 0.1)

    def _read_slowly(self, chance: random.Random) -> None:
        body = {**self._body(chance), "max_tokens": 1500, "logprobs": 5}
        with connect(self._server, 60, receive_bytes=4096) as connection:
            connection.sendall(post("/v1/completions", body))
            for _ in range(30):
                if self._is_over.wait(0.1) or not connection.recv(1):
                    return

    def _be_odd(self, chance: random.Random) -> None:
        path, body = odd_request(chance.randrange(10**9), seed=2)
        with connect(self._server, 60) as connection:
            connection.sendall(post(path, body, "Connection: close"))
            found = statuses(read_all(connection))
        if found[:1] and not (200 <= found[0] < 300 or 400 <= found[0] < 500):
            self.faults.append(f"odd: {found} {path} {json.dumps(body)[:300]}")

    def _send_noise(self, chance: random.Random) -> None:
        with connect(self._server, 60) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(chance.randbytes(chance.randrange(1, 2000)) + b"\r\n\r\n")
            read_all(connection)


def resident_mb(pids: list[int]) -> float:
    """Of these processes together."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def slope(samples: list[dict[str, float]], name: str) -> float:
    """Growth of a value in an hour, by least squares, after the warm-up."""
    late = samples[int(len(samples) * WARM_UP_SHARE) :]
    hours = [sample["s"] / 3600 for sample in late]
    values = [sample[name] for sample in late]
    middle, mean = sum(hours) / len(late), sum(values) / len(late)
    spread = sum((hour - middle) ** 2 for hour in hours)
    pairs = zip(hours, values, strict=True)
    return sum((h - middle) * (v - mean) for h, v in pairs) / spread if spread else 0.0


def sample(server: Server, canary: Canary, began: float, first_gap: int) -> dict[str, float]:
    """What is written down each time."""
    stats = counters(server)
    gaps = sorted(canary.gaps[first_gap:]) or [0.0]
    return {
        "s": round(time.monotonic() - began, 1),
        "resident_mb": round(resident_mb([server.process.pid, *server.children()]), 2),
        "engine_mb": round(resident_mb([server.engine_pid()]), 2),
        "descriptors": num_descriptors(server),
        "held_blocks": stats["num_blocks"] - stats["num_free_blocks"],
        "gap_p99_ms": round(gaps[min(len(gaps) - 1, int(0.99 * len(gaps)))] * 1e3, 2),
    }


def soak(server: Server, seconds: float, every_s: float, trace: Path | None) -> dict[str, Any]:
    """Run the load; samples and what they come to."""
    before = baseline(server)
    samples: list[dict[str, float]] = []
    load = Load(server, lengths(trace))
    with Canary(server) as canary:
        began = time.monotonic()
        load.start()
        try:
            while time.monotonic() - began < seconds:
                first_gap = len(canary.gaps)
                time.sleep(every_s)
                samples.append(sample(server, canary, began, first_gap))
        finally:
            load.stop()
    blocks_back_after_s = before.wait(10)
    before.wait_descriptors(10)
    late = samples[int(len(samples) * WARM_UP_SHARE) :]
    return {
        "seconds": round(time.monotonic() - began, 1),
        "deeds": load.counts,
        "faults": [*load.faults, *canary.faults][:20],
        "canary_streams": canary.num_streams,
        "blocks_back_after_s": round(blocks_back_after_s, 2),
        "descriptors_before": before.descriptors,
        "descriptors_most": max(each["descriptors"] for each in samples),
        "resident_mb_after_warm_up": late[0]["resident_mb"],
        "resident_mb_at_the_end": late[-1]["resident_mb"],
        "resident_mb_per_hour": round(slope(samples, "resident_mb"), 2),
        "engine_mb_per_hour": round(slope(samples, "engine_mb"), 2),
        "descriptors_per_hour": round(slope(samples, "descriptors"), 2),
        "gap_p99_ms_first_half": _median(late[: len(late) // 2]),
        "gap_p99_ms_second_half": _median(late[len(late) // 2 :]),
        "samples": samples,
    }


def _median(samples: list[dict[str, float]]) -> float:
    values = sorted(each["gap_p99_ms"] for each in samples) or [0.0]
    return values[len(values) // 2]


def main() -> int:
    """Run, write soak.json and soak.svg, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=10, help="seconds between samples")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        launch = stack.enter_context(launcher(directory, make_tiny_model(directory / "model")))
        server = launch(*FLAGS, OCTAVO_ADMIN_API_KEY=ADMIN_KEY).wait_ready()
        report = soak(server, arguments.minutes * 60, arguments.every, arguments.trace)
    arguments.out.mkdir(parents=True, exist_ok=True)
    samples = report.pop("samples")
    (arguments.out / "soak.json").write_text(json.dumps({**report, "samples": samples}))
    (arguments.out / "soak.svg").write_text(plot(samples))
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
