"""An engine double with the surface of octavo._core.Engine.

Sequence i of a request gets the tokens last + 1 + i, last + 2 + i, … modulo the vocabulary, where
last is its prompt's last token: a test can tell whose tokens it got. One step makes one token for
every running sequence and takes `step_s`.
"""

from __future__ import annotations

import array
import threading
import time
from dataclasses import dataclass, field

from octavo.engine.protocol import LOGPROB, RECORD
from octavo.errors import InvalidRequestError, QueueFullError

VOCAB_SIZE = 1000
MAX_MODEL_LEN = 1 << 30
LOST_DEVICE = "CUDA error 719: the device is lost"


@dataclass
class OutputBatch:
    connection: int
    records: bytes = b""
    token_ids: bytes = b""
    logprobs: bytes = b""
    prompt_logprobs: bytes = b""
    pooled: bytes = b""
    errors: dict[int, str] = field(default_factory=dict)


@dataclass
class Sequence:
    id: int
    index: int
    next_token: int
    left: int
    num_prompt: int
    logprobs: int | None


class FakeEngine:
    def __init__(
        self,
        step_s: float = 0.0,
        max_num_queued: int = 1000,
        lost_on_token: int | None = None,
    ) -> None:
        self.step_s = step_s
        self.max_num_queued = max_num_queued
        self.lost_on_token = lost_on_token  # of a prompt: ends as the engine does without a device
        self.aborted: list[int | tuple[int, int]] = []
        self.num_resets = 0
        self.num_self_checks = 0
        self.lora_ids: dict[int, int] = {}  # of requests
        self.num_loras = 0
        self.open_loras: set[int] = set()
        self.lora_targets: list[tuple] = []
        self.hold_loras: threading.Event | None = None
        self.restore_fails = False  # as without memory for the KV cache
        self._is_drowsy = False
        self._sleep = {"is_asleep": 0.0, "num_wake_ups": 0.0, "num_failed_wake_ups": 0.0}
        self.fault: BaseException | None = None
        self._error = ""
        self._running: list[Sequence] = []
        self._outbox: list[OutputBatch] = []
        self._changed = threading.Condition(threading.RLock())
        self._is_shut_down = False
        self._heartbeat: memoryview | None = None
        self._offset = 0
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def set_heartbeat(self, page, offset: int) -> None:
        self._heartbeat = memoryview(page).cast("B")[offset : offset + 8].cast("q")

    # --- octavo._core.Engine ---

    def submit(
        self,
        id,  # noqa: A002
        token_ids,
        sampling,
        priority=0,
        cache_salt=0,
        token_mask=None,
        lora_id=0,
    ) -> None:
        tokens = array.array("i", bytes(token_ids))
        self.lora_ids[id] = lora_id
        if not tokens or max(tokens) >= VOCAB_SIZE or min(tokens) < 0:
            raise InvalidRequestError("A token id is out of range.", param="prompt")
        with self._changed:
            if len(self._running) >= self.max_num_queued:
                raise QueueFullError("Too many requests wait already.")
            for index in range(sampling.n):
                self._running.append(
                    Sequence(id, index, tokens[-1] + 1 + index, sampling.max_tokens, len(tokens),
                             sampling.logprobs)
                )  # fmt: skip
            if self.lost_on_token in tokens:
                self._lose_device()
            self._changed.notify_all()

    def abort(self, id: int, sequence_index: int = -1) -> None:  # noqa: A002
        with self._changed:
            self.aborted.append(id if sequence_index < 0 else (id, sequence_index))
            ended = [s for s in self._running if s.id == id and sequence_index in (-1, s.index)]
            self._running = [s for s in self._running if s not in ended]
            for sequence in ended:
                self._publish(sequence, [], reason=3)
            self._changed.notify_all()

    def begin_lora(self) -> int:
        if self.hold_loras is not None:
            self.hold_loras.wait()
        if len(self.open_loras) == 2:
            raise InvalidRequestError("There is room for 2 adapters and all of it is taken.")
        self.num_loras += 1
        return self.num_loras

    def load_lora(self, lora_id, target, scale, a, b) -> None:
        self.lora_targets.append((lora_id, target, scale, a, b))

    def open_lora(self, lora_id: int) -> None:
        self.open_loras.add(lora_id)

    def close_lora(self, lora_id: int) -> None:
        self.open_loras.discard(lora_id)

    def take_mask_work(self, timeout_s: float) -> list[tuple[int, int, int]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_shut_down, timeout_s)
        return None if self._is_shut_down else []

    def reset_prefix_cache(self) -> None:
        self.num_resets += 1

    def self_check(self) -> None:
        self.num_self_checks += 1

    def sleep(self, aborts: bool) -> None:
        self._is_drowsy = True
        if aborts:
            for id_ in {sequence.id for sequence in self._running}:
                self.abort(id_)

    def wake_up(self) -> None:
        if self.restore_fails:
            self._sleep["num_failed_wake_ups"] += 1
        else:
            self._is_drowsy, self._sleep["is_asleep"] = False, 0.0
            self._sleep["num_wake_ups"] += 1

    def take_outputs(self, timeout_s: float) -> list[OutputBatch] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._outbox or self._is_shut_down, timeout_s)
            if self.fault is not None:
                raise self.fault
            if self._is_shut_down and not self._outbox:
                return None
            outputs, self._outbox = self._outbox, []
            return outputs

    def stats(self) -> dict[str, float]:
        if self._is_drowsy and not self._running:
            self._sleep["is_asleep"] = 1.0
        return {"num_running": float(len(self._running)), "num_waiting": 0.0, **self._sleep}

    def shutdown(self) -> None:
        with self._changed:
            for sequence in self._running:
                self._publish(sequence, [], reason=3)
            self._running = []
            self._is_shut_down = True
            self._changed.notify_all()

    def last_error(self) -> str:
        return self._error

    def _lose_device(self) -> None:
        """Last records, then nothing more."""
        self._error = LOST_DEVICE
        self.end_with_error("The engine failed while it served this request.")
        self.shutdown()

    def fail(self, fault: BaseException) -> None:
        with self._changed:
            self.fault = fault
            self._is_shut_down = True
            self._changed.notify_all()

    def end_with_error(self, message: str) -> None:
        """Every running request ends with an engine fault."""
        with self._changed:
            for sequence in self._running:
                self._publish(sequence, [], reason=4, error=message)
            self._running = []
            self._changed.notify_all()

    # --- The engine thread ---

    def _loop(self) -> None:
        while not self._is_shut_down:
            if self._heartbeat is not None:
                self._heartbeat[0] = time.monotonic_ns()
            with self._changed:
                if not self._running:
                    self._changed.wait(0.05)
                    continue
                for sequence in list(self._running):
                    self._step(sequence)
                self._changed.notify_all()
            time.sleep(self.step_s)

    def _step(self, sequence: Sequence) -> None:
        token = sequence.next_token % VOCAB_SIZE
        sequence.next_token += 1
        sequence.left -= 1
        if sequence.left == 0:
            self._running.remove(sequence)
        self._publish(sequence, [token], reason=0 if sequence.left else 2)

    def _publish(self, sequence: Sequence, tokens: list[int], reason: int, error: str = "") -> None:
        connection = sequence.id >> 48
        batch = next((b for b in self._outbox if b.connection == connection), None)
        if batch is None:
            batch = OutputBatch(connection)
            self._outbox.append(batch)
        num_logprobs = 0
        if sequence.logprobs is not None:
            for token in tokens:
                for rank in range(1 + sequence.logprobs):
                    batch.logprobs += LOGPROB.pack(token + rank, -0.5 * (rank + 1), rank + 1)
                    num_logprobs += 1
        batch.records += RECORD.pack(
            sequence.id, sequence.index, len(tokens), sequence.num_prompt, 0, -1, num_logprobs, 0,
            0, 0, reason,
        )  # fmt: skip
        batch.token_ids += array.array("i", tokens).tobytes()
        if error:
            batch.errors[sequence.id] = error
