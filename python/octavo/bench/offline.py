"""The engine in this process, fed with token ids: no HTTP, no text, no sockets."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.engine.protocol import RECORD
from octavo.errors import EngineError
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from octavo.bench.workloads import Item
    from octavo.config import ServeConfig
    from octavo.engine.process import Loaded

WAIT_S = 1.0
ERROR_REASON = 4  # FinishReason::kError


@dataclass(frozen=True)
class Totals:
    """One workload through the engine.

    Attributes:
        seconds: First submit to last output.
        prompt_tokens: Tokens of all prompts.
        output_tokens: Tokens that came back.
        stats: How the engine's counters grew.
    """

    seconds: float
    prompt_tokens: int
    output_tokens: int
    stats: dict[str, float]


class OfflineEngine:
    """An engine that is loaded and started. Use as a context.

    Args:
        loaded: From octavo.engine.loader.load().
    """

    def __init__(self, loaded: Loaded) -> None:
        self._engine = loaded.engine
        self._to_sampling = loaded.to_sampling
        self._adapters = loaded.adapters
        self.max_model_len = loaded.info.max_model_len

    def __enter__(self) -> OfflineEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._engine.shutdown()

    def run(self, items: Sequence[Item], adapters: Sequence[str] = ("",)) -> Totals:
        """Submit everything at once and wait until it has ended.

        Args:
            items: The requests.
            adapters: Names that they have in turns; "" is none.

        Raises:
            EngineError: A request failed, or gave another number of tokens than asked for.
        """
        before = self._engine.stats()
        begun_s = time.perf_counter()
        for number, item in enumerate(items):
            name = adapters[number % len(adapters)]
            self._engine.submit(
                number,
                item.prompt.tobytes(),
                self._sampling(item.max_tokens),
                lora_id=self._adapters.id_of(name) if name and self._adapters else 0,
            )
        output_tokens = self._drain(len(items))
        seconds = time.perf_counter() - begun_s
        if output_tokens != sum(item.max_tokens for item in items):
            raise EngineError("The engine ended a request before its last token.")
        after = self._engine.stats()
        stats = {name: value - before.get(name, 0.0) for name, value in after.items()}
        prompt_tokens = sum(len(item.prompt) for item in items)
        return Totals(seconds, prompt_tokens, output_tokens, stats)

    def stats(self) -> dict[str, float]:
        """The engine's counters and gauges, as of its last step."""
        return self._engine.stats()

    def _sampling(self, max_tokens: int) -> object:
        return self._to_sampling(
            SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
        )

    def _drain(self, unfinished: int) -> int:
        """Take outputs until so many requests have ended; returns the number of their tokens."""
        output_tokens = 0
        while unfinished:
            batches = self._engine.take_outputs(WAIT_S)
            if batches is None:
                raise EngineError("The engine ended while requests ran.")
            for batch in batches:
                for _, _, count, *_, reason in RECORD.iter_unpack(batch.records):
                    output_tokens += count
                    unfinished -= reason != 0
                    if reason == ERROR_REASON:
                        raise EngineError(next(iter(batch.errors.values()), "A request failed."))
        return output_tokens


def load(config: ServeConfig) -> OfflineEngine:
    """Load a model as the server would, warm-up included.

    Raises:
        OctavoError: As the start of a server.
    """
    from octavo.engine.loader import load as load_engine  # noqa: PLC0415 - the extension is heavy
    from octavo.engine.status_page import StatusPage  # noqa: PLC0415

    return OfflineEngine(load_engine(config, StatusPage()))
