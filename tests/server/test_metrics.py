"""GET /metrics and /load."""

from __future__ import annotations

import os

import pytest
from app_under_test import Server
from prometheus_client.parser import text_string_to_metric_families
from scripted_engine import say

from octavo.errors import EngineFaultError
from octavo.server.request_metrics import HISTOGRAMS, MetricsPage, RequestMetrics


def scrape(server: Server) -> dict[str, float]:
    """Every sample by name and labels, read by Prometheus' own parser."""
    result = server.client.simulate_get("/metrics")
    assert result.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = {}
    for family in text_string_to_metric_families(result.text):
        assert family.type != "unknown", family.name
        assert family.documentation
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            key = sample.name + "".join(f",{k}={v}" for k, v in sorted(labels.items()))
            assert key not in samples
            samples[key.removeprefix("octavo:")] = sample.value
    return samples


def test_engine_values(server: Server) -> None:
    samples = scrape(server)
    assert samples["num_requests_running"] == 3
    assert samples["num_requests_waiting"] == 2
    assert samples["kv_cache_usage_perc"] == 0.25
    assert samples["num_preemptions_total"] == 1
    assert samples["prompt_tokens_total"] == 10
    assert samples["generation_tokens_total"] == 20
    assert samples["prefix_cache_queries_total"] == 8
    assert samples["prefix_cache_hits_total"] == 4
    assert samples["ready"] == 1
    assert samples["startup_seconds,phase=loading_weights"] == 1.5


def test_requests_are_counted_by_reason(server: Server) -> None:
    server.engine.script = say("one STOP two")
    server.complete(max_tokens=3)
    server.complete(max_tokens=20, n=2)
    server.complete(max_tokens=20, stop="STOP")
    samples = scrape(server)
    assert samples["request_success_total,finished_reason=length"] == 1
    assert samples["request_success_total,finished_reason=stop"] == 3
    assert samples["request_success_total,finished_reason=abort"] == 0


def test_time_in_the_queue_is_the_requests(server: Server) -> None:
    server.engine.queue_time_us = 1_500_000
    server.complete(max_tokens=3, n=2, prompt=["a", "b"])
    samples = scrape(server)
    assert samples["request_queue_time_seconds_count"] == 2
    assert samples["request_queue_time_seconds_sum"] == 3.0
    assert samples["request_queue_time_seconds_bucket,le=1.0"] == 0
    assert samples["request_queue_time_seconds_bucket,le=2.5"] == 2


def test_failed_choices_are_errors(server: Server) -> None:
    server.engine.fail_at, server.engine.failure = 1, EngineFaultError("The engine failed.")
    server.complete(n=2)
    assert scrape(server)["request_success_total,finished_reason=error"] == 2


def test_histograms(server: Server) -> None:
    server.complete(max_tokens=4)
    server.complete(max_tokens=1, n=2)
    samples = scrape(server)
    assert samples["time_to_first_token_seconds_count"] == 3
    assert samples["inter_token_latency_seconds_count"] == 3
    assert samples["e2e_request_latency_seconds_count"] == 3
    assert samples["request_generation_tokens_sum"] == 6
    assert samples["request_generation_tokens_bucket,le=1.0"] == 2
    assert samples["request_generation_tokens_bucket,le=5.0"] == 3
    assert samples["request_prompt_tokens_sum"] == 18
    for histogram in HISTOGRAMS:
        counts = [samples[f"{histogram.name}_bucket,le={b}"] for b in (*histogram.bounds, "+Inf")]
        assert counts == sorted(counts)
        assert counts[-1] == samples[f"{histogram.name}_count"]


def test_coalesced_tokens_share_their_time() -> None:
    metrics = RequestMetrics()
    metrics.next_tokens(0.04, 4)
    totals = metrics.page.totals()
    inter_token = HISTOGRAMS[1]
    words = totals[inter_token.offset : inter_token.offset + inter_token.num_words]
    assert words[-1] == pytest.approx(0.04)
    assert words[inter_token.bounds.index(0.01)] == 4


def test_workers_add_up() -> None:
    page = MetricsPage(2)
    mine = RequestMetrics(page, 0)
    mine.finished("stop", 1.0, 5)
    child = os.fork()
    if child == 0:
        RequestMetrics(page, 1).finished("stop", 1.0, 7)
        os._exit(0)
    os.waitpid(child, 0)
    assert page.totals()[0] == 2
    RequestMetrics(page, 1).finished("stop", 1.0, 7)  # the next worker goes on in the same slot
    assert page.totals()[0] == 3


def test_names_are_escaped() -> None:
    server = Server(served_model_name=('a"b\\c',))
    text = server.client.simulate_get("/metrics").text
    assert 'model_name="a\\"b\\\\c"' in text
    assert scrape(server)


def test_load(server: Server) -> None:
    assert server.client.simulate_get("/load").json == {
        "server_load": 5,
        "num_running": 3,
        "num_waiting": 2,
        "kv_cache_usage": 0.25,
    }
