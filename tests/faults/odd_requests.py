"""Many odd requests beside a canary: every answer must be 2xx or 4xx, and the canary undisturbed.

    PYTHONPATH=python:tests python -m faults.odd_requests --count 100000

starts a server of a tiny model, or takes --port of one that runs with --enable-admin.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.serving import Server, launcher
from e2e.tiny_model import make_tiny_model
from faults.odd_values import NUM_PAIRS, odd_request
from faults.wire import ADMIN_KEY, Canary, baseline

FLAGS = ("--enable-admin", "--disable-log-requests", "--scheduling-policy", "priority")
NUM_CLIENTS = 8


@dataclass
class Outcome:
    """What became of the requests.

    Attributes:
        statuses: Number of answers by status.
        faults: Requests whose answer was none of the allowed ones.
        slowest_s: The longest answer.
    """

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def send_all(server: Server, first: int, count: int, seed: int) -> Outcome:
    """Send requests first … first + count - 1 from several clients."""
    outcome = Outcome()
    indices = iter(range(first, first + count))
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        with contextlib.closing(connection):
            while True:
                with lock:
                    index = next(indices, None)
                if index is None:
                    return
                _send(connection, index, seed, outcome)

    threads = [threading.Thread(target=client) for _ in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcome


def _send(connection: http.client.HTTPConnection, index: int, seed: int, outcome: Outcome) -> None:
    path, body = odd_request(index, seed)
    began = time.monotonic()
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        fault = _fault(answer.status, text)
        outcome.statuses[answer.status] += 1
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        fault = repr(error)
    outcome.slowest_s = max(outcome.slowest_s, time.monotonic() - began)
    if fault:
        outcome.faults.append(f"{index}: {path} {json.dumps(body)[:600]} -> {fault[:300]}")


def _fault(status: int, text: str) -> str:
    if not (200 <= status < 300 or 400 <= status < 500):
        return f"{status} {text}"
    if '"internal_server_error"' in text or '"type":"api_error"' in text:
        return text[-300:]
    return ""


@contextlib.contextmanager
def own_server(directory: Path) -> Any:
    """A server of a tiny model."""
    model = make_tiny_model(directory / "model")
    with launcher(directory, model) as launch:
        yield launch(*FLAGS, OCTAVO_ADMIN_API_KEY=ADMIN_KEY).wait_ready()


def existing_server(port: int) -> Server:
    """One that somebody else runs, with the admin key of the tests."""
    return Server(subprocess.Popen(["true"]), port, Path("/dev/null"))


def main() -> int:
    """Run and report; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=NUM_PAIRS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if arguments.port:
            server = existing_server(arguments.port)
        else:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = stack.enter_context(own_server(directory))
        before = baseline(server)
        began = time.monotonic()
        with Canary(server) as canary:
            outcome = send_all(server, arguments.first, arguments.count, arguments.seed)
        took = time.monotonic() - began
        before.wait(5)
        restarts = server.metric("engine_restarts_total")
    faults = [*outcome.faults, *canary.faults]
    report = {
        "requests": arguments.count, "pairs_of_features": NUM_PAIRS, "seconds": round(took, 1),
        "statuses": dict(sorted(outcome.statuses.items())), "faults": len(outcome.faults),
        "slowest_s": round(outcome.slowest_s, 2), "engine_restarts": restarts,
        "canary_streams": canary.num_streams, "canary_faults": len(canary.faults),
        "canary_gap_p99_ms": round(canary.gap(0.99), 1),
    }  # fmt: skip
    sys.stdout.write("".join(f"{line}\n" for line in [*faults[:20], json.dumps(report)]))
    return 1 if faults or restarts else 0


if __name__ == "__main__":
    sys.exit(main())
