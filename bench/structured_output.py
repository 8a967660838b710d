"""What structured output beside it does to a plain stream: gaps between its events.

    octavo serve smollm2 --port 8000
    python bench/structured_output.py --url http://127.0.0.1:8000 --schemas 100 --json out.json

A plain stream is measured alone, beside another plain stream, and beside a stream that a JSON
schema holds, in turns. A second plain stream is the fair comparison: it has the same share of every
step. Then `--schemas` made-up schemas are asked for, 8 at a time, and each answer that was not cut
off is parsed and validated.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import random
import statistics
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

from octavo.bench.report import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN = {"prompt": "Once upon a time", "temperature": 0, "ignore_eos": True}
# Nothing but letters and digits inside long strings, so that it runs as long as the measurement.
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 200, "maxLength": 400},
        "tags": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[a-z]{3,12}$"},
            "minItems": 40,
            "maxItems": 80,
        },
        "score": {"type": "number", "minimum": 0, "maximum": 100},
    },
    "required": ["title", "tags", "score"],
    "additionalProperties": False,
}
HELD = {
    "prompt": "A record as JSON: ",
    "temperature": 0.8,
    "structured_outputs": {"json": SCHEMA},
}


class Server:
    """Where requests go."""

    def __init__(self, url: str) -> None:
        parsed = urllib.parse.urlsplit(url)
        self._address = (parsed.hostname or "127.0.0.1", parsed.port or 80)

    @contextlib.contextmanager
    def post(self, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(*self._address, timeout=300)
        with contextlib.closing(connection):
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            yield response

    def gaps(self, body: dict[str, Any]) -> list[float]:
        """Milliseconds between the events of a stream."""
        with self.post({**body, "stream": True}) as response:
            events = (line for line in response if line.startswith(b"data: {"))
            times = [time.perf_counter() for _ in events]
        return [1e3 * (b - a) for a, b in itertools.pairwise(times)]

    @contextlib.contextmanager
    def beside(self, body: dict[str, Any] | None) -> Iterator[list[int]]:
        """Keeps a stream running meanwhile; gives its events of each request."""
        done = threading.Event()
        events: list[int] = []

        def run() -> None:
            while not done.is_set() and body is not None:
                events.append(0)
                with self.post({**body, "max_tokens": 1000, "stream": True}) as response:
                    for line in response:
                        events[-1] += line.startswith(b"data: {")
                        if done.is_set():
                            return

        thread = threading.Thread(target=run)
        thread.start()
        while body is not None and sum(events) < 5:
            time.sleep(0.01)
        try:
            yield events
        finally:
            done.set()
            thread.join()


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def interference(server: Server, rounds: int, tokens: int) -> dict[str, Any]:
    cases = {"alone": None, "plain": {**PLAIN, "prompt": "In the year"}, "held": HELD}
    results: dict[str, Any] = {name: {"p50_ms": [], "p99_ms": [], "rate": []} for name in cases}
    server.gaps({**PLAIN, "max_tokens": 50})
    with server.post({**HELD, "max_tokens": 20}) as response:  # the vocabulary is read once
        response.read()
    for _ in range(rounds):
        for name, body in cases.items():
            with server.beside(body) as events:
                before, begin = sum(events), time.perf_counter()
                gaps = server.gaps({**PLAIN, "max_tokens": tokens})
                seconds = time.perf_counter() - begin
            results[name]["p50_ms"].append(percentile(gaps, 0.5))
            results[name]["p99_ms"].append(percentile(gaps, 0.99))
            results[name]["rate"].append((sum(events) - before) / seconds)
    return results


def made_up_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = rng.choice(
        ["string", "integer", "boolean", "enum", *(["object", "array"] if depth < 2 else [])]
    )
    if depth == 0 or kind == "object":
        names = rng.sample(["name", "age", "city", "größe", "名前", "is_open"], rng.randint(1, 4))
        return {
            "type": "object",
            "properties": {name: made_up_schema(rng, depth + 1) for name in names},
            "required": names,
            "additionalProperties": False,
        }
    if kind == "array":
        return {"type": "array", "items": made_up_schema(rng, depth + 1), "maxItems": 3}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(5, 40)}
    if kind == "integer":
        return {"type": "integer", "minimum": 0, "maximum": 10**6}
    if kind == "enum":
        return {"enum": rng.sample(["red", "grün", "青", 1, None], 3)}
    return {"type": kind}


def validity(server: Server, count: int) -> dict[str, int]:
    rng = random.Random(6)
    schemas = [made_up_schema(rng) for _ in range(count)]
    outcomes = {"valid": 0, "invalid": 0, "cut_off": 0}

    def ask(number: int) -> str:
        schema = schemas[number]
        body = {
            "prompt": f"Record number {number} as JSON: ",
            "max_tokens": 600,
            "seed": number,
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        }
        with server.post(body) as response:
            (choice,) = json.load(response)["choices"]
        if choice["finish_reason"] != "stop":
            return "cut_off"
        try:
            jsonschema.validate(json.loads(choice["text"]), schema)
        except (ValueError, jsonschema.ValidationError):
            return "invalid"
        return "valid"

    with ThreadPoolExecutor(8) as pool:
        for outcome in pool.map(ask, range(count)):
            outcomes[outcome] += 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--schemas", type=int, default=100)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    server = Server(arguments.url)
    results = interference(server, arguments.rounds, arguments.tokens)
    for name, values in results.items():
        p50, p99, rate = (statistics.median(values[key]) for key in ("p50_ms", "p99_ms", "rate"))
        print(f"{name:6} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  beside it {rate:6.1f} tokens/s")
    outcomes = validity(server, arguments.schemas)
    print(outcomes)
    if arguments.json:
        whole = {"machine": machine(), "gaps": results, "schemas": outcomes}
        arguments.json.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
