"""What the deployment files are compared with, taken from the program itself."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from octavo.config import ServeConfig, add_arguments, load, options
from octavo.engine.client import EngineState
from octavo.server import health, metrics
from octavo.server.request_metrics import MetricsPage, RequestMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
VARIABLES = {option.variable for option in options()} | {"OCTAVO_CONFIG"}
FLAGS = {option.flag for option in options()}
PROBE_PATHS = set(health.probe_routes(None, None))  # type: ignore[arg-type]
ROUTES = PROBE_PATHS | {"/metrics"}


def load_environment(environment: Mapping[str, str], words: Sequence[str]) -> ServeConfig:
    """The configuration of `octavo serve WORDS` in an environment."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = {k: v for k, v in vars(parser.parse_args(words)).items() if v is not None}
    return load(given, environment)


def exposition() -> str:
    """The text of /metrics with every metric in it."""
    state = EngineState(phase="ready", is_ready=True, phase_seconds={"warming_up": 1.0})
    stats = dict.fromkeys((key for *_, key in metrics._ENGINE_METRICS), 1.0)
    context = SimpleNamespace(
        engine=SimpleNamespace(state=lambda: state, stats=lambda _: stats),
        config=SimpleNamespace(model_names=("demo",)),
        metrics=RequestMetrics(MetricsPage()),
    )
    response = SimpleNamespace(text="", content_type="")
    metrics.MetricsResource(context).on_get(None, response)  # type: ignore[arg-type]
    return response.text


def sample_names() -> set[str]:
    """Every time series name that /metrics has."""
    return set(re.findall(r"^([a-z0-9_:]+)\{", exposition(), re.MULTILINE))


def label_values(label: str) -> set[str]:
    """Every value of a label on /metrics."""
    return set(re.findall(rf'\b{label}="([^"]*)"', exposition()))
