"""GET /metrics: Prometheus text, the same whichever worker is asked; GET /load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.errors import RequestError
from octavo.server.openapi import Operation
from octavo.server.request_metrics import FINISH_REASONS, HISTOGRAMS
from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import falcon

    from octavo.engine.client import EngineState
    from octavo.server.context import ServerContext

PREFIX = "octavo:"
_STATS_TIMEOUT_S = 2.0

# name, type, help, key of the engine's stats
_ENGINE_METRICS = (
    ("num_requests_running", "gauge", "Sequences that run.", "num_running"),
    ("num_requests_waiting", "gauge", "Sequences that wait.", "num_waiting"),
    ("num_preemptions_total", "counter", "Sequences put back to be computed again.",
     "num_preemptions"),
    ("prompt_tokens_total", "counter", "Prompt tokens computed or found.", "num_prompt_tokens"),
    ("generation_tokens_total", "counter", "Tokens generated.", "num_generation_tokens"),
    ("prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.",
     "num_prefix_query_tokens"),
    ("prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
     "num_prefix_hit_tokens"),
    ("kv_cache_blocks", "gauge", "Blocks of the KV cache.", "num_blocks"),
    ("kv_cache_free_blocks", "gauge", "Blocks that nobody holds.", "num_free_blocks"),
    ("kv_cache_bytes", "gauge", "Memory of the KV cache.", "kv_cache_bytes"),
    ("weight_bytes", "gauge", "Memory of the weights.", "weight_bytes"),
    ("engine_steps_total", "counter", "Steps of the engine.", "num_steps"),
    ("engine_step_seconds_total", "counter", "Time spent in steps.", "step_seconds"),
    ("engine_device_seconds_total", "counter", "Of it, the model's forward pass.",
     "device_seconds"),
)  # fmt: skip


class MetricsResource:
    """GET /metrics."""

    is_open = True
    answers_while_loading = True

    operations = {  # noqa: RUF012 - a constant
        "get": Operation(summary="Prometheus metrics", media_type="text/plain")
    }

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Render what the engine and all workers have counted."""
        engine = self._context.engine
        try:
            stats = engine.stats(_STATS_TIMEOUT_S)
        except RequestError:  # not ready, or gone: the rest is still worth reading
            stats = {}
        label = f'model_name="{_escape(self._context.config.model_names[0])}"'
        totals = self._context.metrics.page.totals()
        lines = [
            *_server_lines(engine.state(), label),
            *_engine_lines(stats, label),
            *_finished_lines(totals, label),
            *_histogram_lines(totals, label),
        ]
        resp.content_type = "text/plain; version=0.0.4; charset=utf-8"
        resp.text = "\n".join(lines) + "\n"

    on_head = on_get


class LoadResource:
    """GET /load: how busy the engine is, for routers."""

    is_open = True

    operations = {  # noqa: RUF012 - a constant
        "get": Operation(summary="How busy the engine is")
    }

    def __init__(self, context: ServerContext) -> None:
        self._engine = context.engine

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Sequences in the engine, and the share of the KV cache in use."""
        stats = self._engine.stats(_STATS_TIMEOUT_S)
        running, waiting = int(stats["num_running"]), int(stats["num_waiting"])
        resp.content_type = "application/json"
        resp.data = msgspec.json.encode(
            {
                "server_load": running + waiting,
                "num_running": running,
                "num_waiting": waiting,
                "kv_cache_usage": _usage(stats),
            }
        )

    on_head = on_get


def _server_lines(state: EngineState, label: str) -> Iterator[str]:
    yield from _head("build_info", "gauge", "The version that runs.")
    yield f'{PREFIX}build_info{{version="{__version__}"}} 1'
    yield from _head("ready", "gauge", "1 while requests are served.")
    yield f"{PREFIX}ready{{{label}}} {int(state.is_ready)}"
    yield from _head("engine_restarts_total", "counter", "Engine processes started again.")
    restarts = max(0, state.generation - 1 - state.num_wake_ups)
    yield f"{PREFIX}engine_restarts_total{{{label}}} {restarts}"
    yield from _head("sleep_level", "gauge", "0 awake, 1 without KV cache, 2 without weights.")
    yield f"{PREFIX}sleep_level{{{label}}} {state.sleep_level}"
    yield from _head("startup_seconds", "gauge", "Duration of each phase of the start.")
    for phase, seconds in state.phase_seconds.items():
        yield f'{PREFIX}startup_seconds{{{label},phase="{phase}"}} {seconds:.6f}'


def _engine_lines(stats: Mapping[str, float], label: str) -> Iterator[str]:
    if not stats:
        return
    yield from _head("kv_cache_usage_perc", "gauge", "Share of the KV cache in use, 0 to 1.")
    yield f"{PREFIX}kv_cache_usage_perc{{{label}}} {_number(_usage(stats))}"
    for name, kind, text, key in _ENGINE_METRICS:
        if key in stats:
            yield from _head(name, kind, text)
            yield f"{PREFIX}{name}{{{label}}} {_number(stats[key])}"


def _finished_lines(totals: Sequence[float], label: str) -> Iterator[str]:
    yield from _head("request_success_total", "counter", "Choices that ended, by reason.")
    for index, reason in enumerate(FINISH_REASONS):
        labels = f'{label},finished_reason="{reason}"'
        yield f"{PREFIX}request_success_total{{{labels}}} {_number(totals[index])}"


def _histogram_lines(totals: Sequence[float], label: str) -> Iterator[str]:
    for histogram in HISTOGRAMS:
        name = PREFIX + histogram.name
        yield from _head(histogram.name, "histogram", histogram.text)
        words = totals[histogram.offset : histogram.offset + histogram.num_words]
        *counts, total = words
        below = 0.0
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), counts, strict=True):
            below += count
            yield f'{name}_bucket{{{label},le="{bound}"}} {_number(below)}'
        yield f"{name}_sum{{{label}}} {_number(total)}"
        yield f"{name}_count{{{label}}} {_number(below)}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}{name} {text}"
    yield f"# TYPE {PREFIX}{name} {kind}"


def _usage(stats: Mapping[str, float]) -> float:
    total = stats.get("num_blocks", 0)
    return 1 - stats.get("num_free_blocks", 0) / total if total else 0.0


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
