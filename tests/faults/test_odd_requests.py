"""A part of the 100,000 odd requests; all of them: see README.md beside this file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from faults.odd_requests import send_all
from faults.odd_values import NUM_PAIRS, ROUTES, odd_request
from faults.wire import IS_LONG, Canary, figures

if TYPE_CHECKING:
    from e2e.serving import Server
    from faults.wire import Baseline

COUNT = 2 * NUM_PAIRS if IS_LONG else 300


def test_all_pairs_come(server: Server) -> None:
    seen: set[tuple[str, str, str]] = set()
    for index in range(NUM_PAIRS):
        path, body = odd_request(index, seed=0)
        json.dumps(body)
        names = sorted(body)
        seen |= {(path, a, b) for i, a in enumerate(names) for b in names[i + 1 :]}
    for path, _, features in ROUTES:
        names = sorted(features)
        assert {(path, a, b) for i, a in enumerate(names) for b in names[i + 1 :]} <= seen


def test_every_answer_is_2xx_or_4xx(server: Server, before: Baseline) -> None:
    with Canary(server) as canary:
        outcome = send_all(server, first=0, count=COUNT, seed=1)
    canary.check()
    assert outcome.faults == []
    assert sum(outcome.statuses.values()) == COUNT
    assert outcome.statuses[200] > COUNT // 4
    before.wait(5)
    figures(0, odd_requests=COUNT, statuses=dict(outcome.statuses))
