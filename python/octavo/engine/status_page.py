"""A page of memory that all processes of a server share: where the start stands, who is alive.

It answers probes without asking anybody. Every word is one aligned 64-bit store by one writer; the
texts have a writer each and are published by the word that carries their length. The page is
an anonymous memory file: nothing is left on disk, and a full disk cannot hurt it.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Final

from octavo.engine.client import EngineState

PHASES: Final = (
    "configuring",
    "binding",
    "downloading",
    "loading_weights",
    "allocating_kv_cache",
    "warming_up",
    "self_testing",
    "ready",
    "draining",
    "failed",
)
READY: Final = PHASES.index("ready")
ENGINE_ENDS: Final = 2  # the sleep level at which there is no engine process

_PAGE_BYTES = 4096
# Words of the arbiter
_STARTED_NS = 0
_DRAINING_NS = 1
# Words of the supervisor
_GENERATION = 2
_ENGINE_PID = 3
_ENGINE_DOWN = 4
_EXIT_CODE = 5  # exit code + 1 once the supervisor has given up or ended
_NUM_WAKE_UPS = 13  # generations that a sleep made necessary
# Words of the engine process; the arbiter writes the phase before there is one
_PHASE = 6
_PROGRESS_PPM = 7
_BYTES_DONE = 8
_BYTES_TOTAL = 9
_HEARTBEAT_NS = 10
_LIVENESS_NS = 11
_BYTES_FOUND = 12  # bytes_done when the phase first told any: a download may go on from there
_PHASE_NS = 16  # start of each phase, len(PHASES) words
# Words of the HTTP workers
_WORKER_FAILURE = 32  # exit code + 1 of a worker that cannot serve
_WORKERS_COMPLETE = 33  # 1 once all of them could serve at the same time
_SLEEP_LEVEL = 34  # that is wanted; the supervisor ends and starts the engine for ENGINE_ENDS
_WORKER_PIDS = 64  # of the workers that can serve, one slot each
_NUM_WORKER_SLOTS = 64

_SUMMARY = (1024, 1024)  # offset, bytes: length word first
_REASON = (2048, 1024)
_WORKER_REASON = (3072, 1024)


class StatusPage:
    """One process's view of the page. fork() keeps it; exec needs the descriptor.

    Args:
        fd: Descriptor of an existing page; -1 makes a new one.
    """

    HEARTBEAT_OFFSET: Final = _HEARTBEAT_NS * 8

    def __init__(self, fd: int = -1) -> None:
        self.is_new = fd < 0
        self.fd = os.memfd_create("octavo-status") if fd < 0 else fd
        if self.is_new:
            os.ftruncate(self.fd, _PAGE_BYTES)
        self.memory = mmap.mmap(self.fd, _PAGE_BYTES)
        self._words = memoryview(self.memory).cast("q")
        if self.is_new:
            self._words[_STARTED_NS] = time.monotonic_ns()
            self.enter("configuring")

    # --- Start-up ---

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        index = PHASES.index(phase)
        words = self._words
        words[_PROGRESS_PPM] = words[_BYTES_DONE] = words[_BYTES_TOTAL] = words[_BYTES_FOUND] = 0
        words[_PHASE_NS + index] = time.monotonic_ns()
        words[_PHASE] = index

    def advance(self, share: float, bytes_done: int = 0, bytes_total: int = 0) -> None:
        """Say how much of the running phase is done."""
        if not self._words[_BYTES_TOTAL]:
            self._words[_BYTES_FOUND] = bytes_done
        self._words[_BYTES_TOTAL] = bytes_total
        self._words[_BYTES_DONE] = bytes_done
        self._words[_PROGRESS_PPM] = int(share * 1e6)

    @property
    def progress(self) -> tuple[int, ...]:
        """Changes while a start gets on."""
        words = self._words
        return (words[_PHASE], words[_PROGRESS_PPM], words[_BYTES_DONE], words[_BYTES_TOTAL])

    def set_liveness_timeout(self, seconds: float) -> None:
        """Let a heartbeat older than this count as a stuck engine."""
        self._words[_LIVENESS_NS] = int(seconds * 1e9)

    def set_summary(self, text: str) -> None:
        """Describe the loaded model, some lines for people."""
        self._write_text(_SUMMARY, text)

    @property
    def summary(self) -> str:
        """The loaded model in some lines."""
        return self._read_text(_SUMMARY)

    @property
    def engine_phase(self) -> str:
        """The engine's own phase, also while the server drains."""
        return PHASES[self._words[_PHASE]]

    # --- Engine generations ---

    def begin_generation(self) -> int:
        """Clear what the previous engine process wrote; returns the new generation, from 1."""
        words = self._words
        for word in (_HEARTBEAT_NS, _LIVENESS_NS, _ENGINE_PID, _SLEEP_LEVEL):
            words[word] = 0
        first = PHASES.index("downloading")
        for index in range(first, len(PHASES)):
            words[_PHASE_NS + index] = 0
        words[_GENERATION] += 1
        self._write_text(_REASON, "")
        self.enter("configuring")
        words[_ENGINE_DOWN] = 0
        return int(words[_GENERATION])

    def set_engine_pid(self, pid: int) -> None:
        """Name the engine process."""
        self._words[_ENGINE_PID] = pid

    @property
    def engine_pid(self) -> int:
        """The engine process, 0 while there is none."""
        return int(self._words[_ENGINE_PID])

    def engine_died(self, reason: str) -> None:
        """Turn readiness and liveness off, with the reason."""
        self._write_text(_REASON, reason)
        self._words[_ENGINE_DOWN] = 1
        self._words[_ENGINE_PID] = 0

    def set_reason(self, reason: str) -> None:
        """Keep why the engine is about to end."""
        self._write_text(_REASON, reason)

    @property
    def reason(self) -> str:
        """Why the engine ended, or "" while it never did."""
        return self._read_text(_REASON)

    # --- Sleep ---

    @property
    def sleep_level(self) -> int:
        """0 while the engine is to be awake."""
        return int(self._words[_SLEEP_LEVEL])

    def set_sleep_level(self, level: int) -> None:
        """Turn readiness off for a sleep, or on after it."""
        self._words[_SLEEP_LEVEL] = level

    def end_engine_sleep(self) -> None:
        """Have the engine process started again. It counts as loading from now on."""
        self.enter("configuring")
        self._words[_SLEEP_LEVEL] = 0

    def count_wake_up(self) -> None:
        """Count the generation that follows as no failure."""
        self._words[_NUM_WAKE_UPS] += 1

    # --- The end ---

    def begin_draining(self) -> None:
        """Admit no more requests. Fit for a signal handler."""
        if not self._words[_DRAINING_NS]:
            self._words[_DRAINING_NS] = time.monotonic_ns()

    @property
    def is_draining(self) -> bool:
        """The server is ending."""
        return bool(self._words[_DRAINING_NS])

    @property
    def drained_s(self) -> float:
        """Seconds since draining began."""
        began = self._words[_DRAINING_NS]
        return (time.monotonic_ns() - began) / 1e9 if began else 0.0

    def set_exit_code(self, code: int) -> None:
        """The supervisor's last word: what the server is to exit with."""
        self._words[_EXIT_CODE] = code + 1

    @property
    def exit_code(self) -> int | None:
        """The supervisor's last word, None before it was spoken."""
        code = self._words[_EXIT_CODE]
        return code - 1 if code else None

    # --- HTTP workers ---

    def worker_ready(self, slot: int, pid: int) -> None:
        """Count an HTTP worker as able to serve; pid 0 takes it back."""
        self._words[_WORKER_PIDS + slot % _NUM_WORKER_SLOTS] = pid

    def has_workers(self, count: int) -> bool:
        """So many HTTP workers have been able to serve at the same time.

        It stays true when one of them dies: the others serve, and its successor does not accept
        connections before it can.
        """
        if not self._words[_WORKERS_COMPLETE]:
            pids = self._words[_WORKER_PIDS : _WORKER_PIDS + _NUM_WORKER_SLOTS]
            if sum(1 for pid in pids if pid) < count:
                return False
            self._words[_WORKERS_COMPLETE] = 1
        return True

    def worker_failed(self, code: int, reason: str) -> None:
        """End the server: an HTTP worker found something that no restart will mend."""
        self._write_text(_WORKER_REASON, reason)
        self._words[_WORKER_FAILURE] = code + 1

    @property
    def worker_failure(self) -> tuple[int, str] | None:
        """Exit code and reason, once a worker failed for good."""
        code = self._words[_WORKER_FAILURE]
        return (code - 1, self._read_text(_WORKER_REASON)) if code else None

    # --- Reading ---

    def read(self) -> EngineState:
        """A snapshot for probes."""
        words, now = self._words, time.monotonic_ns()
        index = words[_PHASE]
        heartbeat, liveness = words[_HEARTBEAT_NS], words[_LIVENESS_NS]
        age_ns = max(0, now - heartbeat) if heartbeat else 0
        level = self.sleep_level
        is_stuck = index == READY and 0 < liveness < age_ns and level != ENGINE_ENDS
        is_alive = not (words[_ENGINE_DOWN] or is_stuck)
        is_draining = self.is_draining
        return EngineState(
            phase=self._phase_name(index),
            progress=words[_PROGRESS_PPM] / 1e6,
            bytes_done=words[_BYTES_DONE],
            bytes_total=words[_BYTES_TOTAL],
            bytes_found=words[_BYTES_FOUND],
            elapsed_s=(now - words[_STARTED_NS]) / 1e9,
            heartbeat_age_s=age_ns / 1e9,
            is_ready=index == READY and is_alive and not is_draining and not level,
            is_alive=is_alive,
            is_draining=is_draining,
            reason="" if is_alive else self._why(age_ns, is_stuck=is_stuck),
            generation=words[_GENERATION],
            phase_seconds=self._phase_seconds(now),
            sleep_level=level,
            num_wake_ups=words[_NUM_WAKE_UPS],
        )

    def _phase_name(self, index: int) -> str:
        if self.is_draining:
            return "draining"
        return "failed" if self._words[_EXIT_CODE] else PHASES[index]

    def _why(self, age_ns: int, *, is_stuck: bool) -> str:
        if is_stuck:
            return f"The engine has given no sign of life for {age_ns / 1e9:.1f} s."
        return self.reason

    def _phase_seconds(self, now: int) -> dict[str, float]:
        """Each phase lasts until the next one began; the last one until now, or for ever."""
        starts = [(ns, i) for i in range(READY + 1) if (ns := self._words[_PHASE_NS + i])]
        starts.sort()
        ends = [ns for ns, _ in starts[1:]] + [now]
        spans = zip(starts, ends, strict=True)
        return {PHASES[i]: (end - ns) / 1e9 for (ns, i), end in spans if i != READY}

    def _write_text(self, place: tuple[int, int], text: str) -> None:
        offset, size = place
        data = text.encode()[: size - 8]
        self._words[offset // 8] = 0
        self.memory[offset + 8 : offset + 8 + len(data)] = data
        self._words[offset // 8] = len(data)

    def _read_text(self, place: tuple[int, int]) -> str:
        offset, _ = place
        length = self._words[offset // 8]
        return self.memory[offset + 8 : offset + 8 + length].decode(errors="ignore")
