"""Figures against numpy and against records worked out by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from octavo.bench.load import Record
from octavo.bench.report import Goals, percentile, publish, serving_figures, summary

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("count", [1, 2, 3, 100, 101])
def test_percentiles_are_numpys(count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    for share in (0, 1, 50, 90, 99, 100):
        ours = percentile(sorted(values.tolist()), share)
        assert ours == pytest.approx(np.percentile(values, share))
    figures = summary(values.tolist())
    assert figures["mean"] == pytest.approx(values.mean())
    assert figures["max"] == values.max()


def record(sent_s: float, *event_s: float, tokens: int | None = None, error: str = "") -> Record:
    count = len(event_s) if tokens is None else tokens
    return Record(sent_s, sent_s, list(event_s), 10, count, count, error)


def test_serving_figures() -> None:
    records = [
        record(0.0, 0.1, 0.2, 0.4),  # TTFT 100, TPOT 150, gaps 100 and 200
        record(1.0, 1.3, 1.5, tokens=5),  # TTFT 300, TPOT 50: five tokens in two events
        record(2.0, 2.2),  # one token: no TPOT
        record(0.5, error="HTTP 429: full"),
        record(0.6, 0.7, error="HTTP 429: full"),
    ]
    figures = serving_figures(records, Goals(ttft_ms=250, tpot_ms=150.001))
    assert (figures["completed"], figures["failed"]) == (3, 2)
    assert figures["errors"] == {"HTTP 429: full": 2}
    assert figures["ttft_ms"]["p50"] == pytest.approx(200)
    assert figures["ttft_ms"]["max"] == pytest.approx(300)
    assert figures["tpot_ms"]["mean"] == pytest.approx(100)
    assert figures["itl_ms"]["mean"] == pytest.approx((100 + 200 + 200) / 3)
    assert figures["e2e_ms"]["p50"] == pytest.approx(400)
    assert figures["duration_s"] == pytest.approx(2.2)
    assert figures["output_tokens_per_s"] == pytest.approx(9 / 2.2)
    assert figures["total_tokens_per_s"] == pytest.approx(39 / 2.2)
    assert figures["goodput_requests_per_s"] == pytest.approx(2 / 2.2)


def test_no_answer_gives_no_times() -> None:
    figures = serving_figures([record(0.0, error="connect: refused")])
    assert figures["failed"] == 1
    assert "ttft_ms" not in figures


def test_publish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result: dict[str, object] = {"command": "serve", "figures": {"completed": 3, "ttft_ms": {}}}
    publish("Serve", result, "-")
    document = json.loads(capsys.readouterr().out)
    assert document["figures"]["completed"] == 3
    assert document["machine"]["cpus"] >= 1
    path = tmp_path / "run.json"
    figures = serving_figures([record(0.0, 0.1, 0.2, 1234.5)])
    publish("Serve", {"figures": figures}, str(path))
    table = capsys.readouterr().out
    assert "output tokens per s" in table
    assert "p99" in table
    assert json.loads(path.read_text())["figures"] == figures
