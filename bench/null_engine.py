"""An engine process without a model: what `frontend.py` puts behind the HTTP workers.

It is the real octavo.engine.process, endpoint and socket around an engine that computes nothing.
Every running sequence gets a token each step, and its first one at once. The tokens are those of a
text with words, code, emoji and CJK, so that the workers' detokenisation is the real one.

The variable NULL_ENGINE holds, as JSON, "step_s", the seconds of a step, "burst", its tokens, and
"max_model_len".
"""

from __future__ import annotations

import array
import json
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.config import resolve_options
from octavo.engine.client import ModelInfo
from octavo.engine.process import Loaded, Process
from octavo.engine.protocol import FINISH_REASONS, RECORD
from octavo.model.files import ModelFiles
from octavo.model.resolve import RemoteModel, resolve_local
from octavo.processes import ignore_ending_signals

if TYPE_CHECKING:
    from octavo.config import ServeConfig
    from octavo.engine.status_page import StatusPage

TEXT = (
    "The quick brown fox jumps over the lazy dog. It was the best of times, it was the worst of "
    "times.\n\n```python\ndef area(r):\n    return 3.14159 * r ** 2\n```\nIn 1,024 of 65,536 cases "
    "na\u00efve caf\u00e9s cost \u20ac3.50. \U0001f600 \u6c49\u5b57\u304b\u306a "
)
VOCAB_SIZE = 49_152
LENGTH, ABORT = FINISH_REASONS.index("length"), FINISH_REASONS.index("abort")


@dataclass
class OutputBatch:
    connection: int
    records: bytes
    token_ids: bytes
    logprobs: bytes = b""
    prompt_logprobs: bytes = b""
    pooled: bytes = b""
    errors: dict[int, str] | None = None

    def __post_init__(self) -> None:
        self.errors = self.errors or {}


@dataclass
class Sequence:
    """A running request; n is not looked at."""

    id: int
    num_prompt: int
    left: int
    made: int = 0

    def record(self, count: int, reason: int) -> bytes:
        return RECORD.pack(self.id, 0, count, self.num_prompt, 0, -1, 0, 0, 0, 0, reason)


class NullEngine:
    """The surface of octavo._core.Engine that octavo.engine.endpoint uses."""

    def __init__(self, text: list[int], step_s: float, burst: int) -> None:
        self._text = array.array("i", text * (1 + 8192 // len(text)))
        self._period = len(text)
        self._step_s = step_s
        self._burst = burst
        self._running: dict[int, Sequence] = {}
        self._outbox: list[OutputBatch] = []
        self._changed = threading.Condition()
        self._is_shut_down = False
        self._heartbeat: memoryview[int] | None = None

    def start(self, page: StatusPage) -> None:
        offset = page.HEARTBEAT_OFFSET
        self._heartbeat = memoryview(page.memory).cast("B")[offset : offset + 8].cast("q")
        threading.Thread(target=self._loop, daemon=True).start()

    # --- octavo._core.Engine ---

    def submit(self, request_id: int, token_ids: bytes, sampling: Any, *_: object) -> None:
        sequence = Sequence(request_id, len(token_ids) // 4, sampling.max_tokens)
        with self._changed:
            self._running[request_id] = sequence
            self._publish([sequence], 1)
            self._changed.notify_all()

    def abort(self, request_id: int, _index: int = -1) -> None:
        with self._changed:
            if sequence := self._running.pop(request_id, None):
                record = sequence.record(0, ABORT)
                self._outbox.append(OutputBatch(request_id >> 48, record, b""))
                self._changed.notify_all()

    def reset_prefix_cache(self) -> None:
        return

    def is_full(self) -> bool:
        return False

    def take_outputs(self, timeout_s: float) -> list[OutputBatch] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._outbox or self._is_shut_down, timeout_s)
            outputs, self._outbox = self._outbox, []
            return None if self._is_shut_down and not outputs else outputs

    def stats(self) -> dict[str, float]:
        return {"num_running": float(len(self._running)), "num_waiting": 0.0}

    def last_error(self) -> str:
        return ""

    def shutdown(self) -> None:
        with self._changed:
            self._is_shut_down = True
            self._changed.notify_all()

    # --- The engine thread ---

    def _loop(self) -> None:
        due = time.monotonic()
        while not self._is_shut_down:
            if self._heartbeat is not None:
                self._heartbeat[0] = time.monotonic_ns()
            with self._changed:
                if self._running:
                    self._publish(list(self._running.values()), self._burst)
                    self._changed.notify_all()
            due = max(due + self._step_s, time.monotonic() - self._step_s)
            time.sleep(max(due - time.monotonic(), 0.0))

    def _publish(self, sequences: list[Sequence], most: int) -> None:
        """One step. Requires: _changed is held."""
        batches: dict[int, tuple[list[bytes], list[bytes]]] = {}
        for sequence in sequences:
            count = min(most, sequence.left)
            begin = sequence.made % self._period
            sequence.made += count
            sequence.left -= count
            if not sequence.left:
                del self._running[sequence.id]
            records, tokens = batches.setdefault(sequence.id >> 48, ([], []))
            records.append(sequence.record(count, 0 if sequence.left else LENGTH))
            tokens.append(self._text[begin : begin + count].tobytes())
        for connection, (records, tokens) in batches.items():
            self._outbox.append(OutputBatch(connection, b"".join(records), b"".join(tokens)))


def build(config: ServeConfig, page: StatusPage) -> Loaded:
    plan = json.loads(os.environ["NULL_ENGINE"])
    found = resolve_local(config.model, resolve_options(config))
    if isinstance(found, RemoteModel):
        raise TypeError("octavo pull the model first")
    text = ModelFiles(found).tokenizer(config.tokenizer).encode(TEXT)
    engine = NullEngine(list(text), plan["step_s"], plan["burst"])
    engine.start(page)
    return Loaded(engine, ModelInfo(VOCAB_SIZE, plan["max_model_len"]), lambda sampling: sampling)


if __name__ == "__main__":
    ignore_ending_signals()
    os._exit(Process(build).run())
