"""From a configuration to a started engine, phase by phase."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import TYPE_CHECKING

from octavo import _core
from octavo.config import resolve_options
from octavo.engine.adapters import load_adapters
from octavo.engine.client import ModelInfo
from octavo.engine.grammars import grammar_compiler
from octavo.engine.process import Loaded
from octavo.engine.settings import (
    adapter_base,
    engine_config,
    kept_types,
    to_core_sampling,
    weight_types,
)
from octavo.model.config import to_core
from octavo.model.files import ModelFiles
from octavo.model.resolve import RemoteModel, ResolvedModel, download, resolve_local
from octavo.model.weights import load_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.config import ServeConfig
    from octavo.engine.status_page import StatusPage

_TICK_S = 0.05

log = logging.getLogger(__name__)


def load(config: ServeConfig, page: StatusPage) -> Loaded:
    """Load a model and start its engine.

    Args:
        config: The server's settings.
        page: Is told each phase and its progress.

    Raises:
        OctavoError: With exit code, cause and remedy.
    """
    files = ModelFiles(_find(config, page))
    info = files.info()
    core = engine_config(config, info, files.generation_config())
    model = to_core(info)
    base = adapter_base(config, files, core)
    is_dummy = config.load_format == "dummy"
    tensors = None if is_dummy else files.tensors(kept=kept_types(core))
    dtypes = weight_types(files, tensors, core, model)
    _core.plan_memory(core, model, dtypes)  # raises if it cannot fit
    engine = _core.Engine(core, model, dtypes)
    page.enter("loading_weights")
    if tensors is None:
        engine.load_dummy_weights(config.seed)
    else:
        surplus = load_weights(engine, tensors, progress=_bytes_to(page))
        if surplus:
            log.warning("%d tensors of the model are not used, first %s", len(surplus), surplus[0])
    engine.finish_loading()
    page.enter("allocating_kv_cache")
    engine.allocate_kv_cache()
    adapters = load_adapters(config, engine, base)
    page.enter("warming_up")
    with _progress_of(engine, page):
        engine.warm_up()
    slowest_step_s = page.read().phase_seconds.get("warming_up", 0.0)
    page.enter("self_testing")
    engine.self_test()
    engine.start()
    engine.set_heartbeat(page.memory, page.HEARTBEAT_OFFSET)
    page.set_summary(_summary(config, core, engine, info.architecture))
    limits = ModelInfo(info.vocab_size, engine.max_model_len(), info.hidden_size)
    compiler = grammar_compiler(files, config.tokenizer, limits.vocab_size)
    return Loaded(engine, limits, to_core_sampling, slowest_step_s, compiler, adapters)


def _find(config: ServeConfig, page: StatusPage) -> ResolvedModel:
    """The model's files, downloaded if they have to be."""
    found = resolve_local(config.model, resolve_options(config))
    if isinstance(found, RemoteModel):
        page.enter("downloading")
        found = download(found, _bytes_to(page))
    return found


class _bytes_to:  # noqa: N801 - reads as a function
    """Reports bytes done and bytes in all to a page."""

    def __init__(self, page: StatusPage) -> None:
        self._page = page

    def __call__(self, done: int, total: int) -> None:
        self._page.advance(done / total if total else 0.0, done, total)


@contextlib.contextmanager
def _progress_of(engine: _core.Engine, page: StatusPage) -> Iterator[None]:
    """Keep the page's progress up to date while the engine works."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(_TICK_S):
            page.advance(engine.progress())

    thread = threading.Thread(target=tick, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _summary(
    config: ServeConfig, core: _core.EngineConfig, engine: _core.Engine, architecture: str
) -> str:
    """What was loaded, for people."""
    stats = engine.stats()
    tokens = int(stats["num_blocks"]) * config.block_size
    longest = engine.max_model_len()
    return (
        f"Model {config.model_names[0]} ({architecture}, {core.weight_dtype}, "
        f"{stats['weight_bytes'] / 1e6:,.0f} MB) on {engine.device_name()}\n"
        f"KV cache {tokens:,} tokens ({stats['kv_cache_bytes'] / 1e6:,.0f} MB): "
        f"{tokens / longest:.1f} sequences of {longest:,} tokens"
    )
