"""Overload: the peak in closed loop, then ten times its rate in open loop.

PYTHONPATH=python:tests python -m faults.overload --seconds 60
"""

from __future__ import annotations

import argparse
import array
import contextlib
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
from octavo.bench.load import Record, Target
from octavo.bench.serve import Load, drive
from octavo.bench.workloads import Item

if TYPE_CHECKING:
    from e2e.serving import Server

NUM_RUNNING, NUM_WAITING = 16, 16
FLAGS = (
    "--max-num-seqs", str(NUM_RUNNING), "--max-num-queued-reqs", str(NUM_WAITING),
    "--disable-log-requests",
)  # fmt: skip
OUTPUT_LEN = 1000  # of many steps, as with models that people serve
FACTOR = 10


def items(count: int, rate: float) -> list[Item]:
    """Requests with prompts of their own; they arrive at random, `rate` a second on average."""
    chance = random.Random(0)
    found, now = [], 0.0
    for _ in range(count):
        now += chance.expovariate(rate)
        prompt = array.array("i", [chance.randrange(2, 258) for _ in range(32)])
        found.append(Item(prompt, OUTPUT_LEN, now))
    return found


def good(records: list[Record]) -> list[Record]:
    """Those that were answered in full."""
    return [r for r in records if not r.error and r.num_output_tokens == OUTPUT_LEN]


def goodput(records: list[Record]) -> float:
    """Whole answers a second, while they came."""
    ends = sorted(record.event_s[-1] for record in good(records))
    begin = min(record.sent_s for record in good(records))
    return len(ends) / (ends[-1] - begin)


class Refusals(threading.Thread):
    """Asks now and then by itself, and keeps what refusals look like."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._server = server
        self.num_refused = 0
        self.faults: list[str] = []
        self.is_over = False

    def run(self) -> None:
        """Until is_over."""
        while not self.is_over:
            answer = self._server.complete(max_tokens=1)
            if answer.status == 429:
                self.num_refused += 1
                if int(answer.headers.get("Retry-After", 0)) < 1:
                    self.faults.append("no Retry-After")
            elif answer.status != 200:
                self.faults.append(f"{answer.status}")
            time.sleep(0.02)


def quantile(values: list[float], share: float) -> float:
    """Of the values, 0 if there are none."""
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(server: Server, seconds: float) -> dict[str, Any]:
    """The figures of both loads on a server with FLAGS."""
    name = server.get("/v1/models").json["data"][0]["id"]
    target = Target(f"http://127.0.0.1:{server.port}", name)
    both = NUM_RUNNING + NUM_WAITING // 2  # all at once, they must find room
    drive(target, items(NUM_RUNNING, 1e6), Load(concurrency=NUM_RUNNING))
    probe = drive(target, items(2 * both, 1e6), Load(concurrency=both)).records
    count = max(2 * both, int(goodput(probe) * seconds))
    closed = drive(target, items(count, 1e6), Load(concurrency=both)).records
    peak = goodput(closed)
    rate = FACTOR * peak
    waits = [record.event_s[0] - record.sent_s for record in good(closed)]
    refusals = Refusals(server)
    refusals.start()
    records = drive(target, items(int(rate * seconds), rate), Load(concurrency=None)).records
    refusals.is_over = True
    refusals.join(60)
    refused = [record for record in records if record.error.startswith("HTTP 429")]
    admitted = good(records)
    return {
        "peak_requests_per_s": round(peak, 2),
        "offered_requests_per_s": round(rate, 1),
        "goodput_requests_per_s": round(goodput(records), 2),
        "goodput_of_peak": round(goodput(records) / peak, 3),
        "requests": len(records),
        "admitted": len(admitted),
        "refused_429": len(refused),
        "other": len(records) - len(admitted) - len(refused),
        "refusals_looked_at": refusals.num_refused,
        "refusal_faults": len(refusals.faults),
        "ttft_p50_s_at_peak": round(quantile(waits, 0.5), 3),
        "ttft_p50_s": round(quantile([r.event_s[0] - r.sent_s for r in admitted], 0.5), 3),
        "ttft_p99_s": round(quantile([r.event_s[0] - r.sent_s for r in admitted], 0.99), 3),
        # Who is admitted waits at most for those before, each batch as long as an answer takes.
        "ttft_bound_s": round(2 * (NUM_RUNNING + NUM_WAITING) / peak, 3),
    }


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        launch = stack.enter_context(launcher(directory, make_tiny_model(directory / "model")))
        figures = measure(launch(*FLAGS).wait_ready(), arguments.seconds)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if not figures["other"] and not figures["refusal_faults"] else 1


if __name__ == "__main__":
    sys.exit(main())
