"""Putting an engine to sleep and waking it, as an HTTP worker does it.

Level 1: the engine gives the memory of its KV cache back and keeps the weights; it wakes in the
time that taking the cache needs. Level 2: the engine process ends, and with it all that it held on
the host and on the device; waking is a start. Either way no request is admitted from the first
moment on, and what runs may finish, or is ended when the patience is over.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from octavo.engine.protocol import Sleep, WakeUp
from octavo.engine.status_page import ENGINE_ENDS
from octavo.errors import EngineFaultError, NotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.engine.protocol import ToEngine
    from octavo.engine.status_page import StatusPage

_POLL_S = 0.01
_ANSWER_S = 30.0  # for the engine to do what takes it no longer than a warm-up


class Sleeper:
    """Drives a sleep to its end.

    Args:
        page: Says to everybody that the engine sleeps; the supervisor acts on it.
        tell: Sends a message to the engine.
        stats: The engine's counters, waiting for them at most so long.
    """

    def __init__(
        self,
        page: StatusPage,
        tell: Callable[[ToEngine], None],
        stats: Callable[[float], dict[str, float]],
    ) -> None:
        self._page = page
        self._tell = tell
        self._stats = stats

    def sleep(self, level: int, patience_s: float) -> None:
        """See EngineClient.sleep(). A deeper sleep than the one asked for goes on."""
        if self._page.sleep_level == ENGINE_ENDS:
            return
        self._page.set_sleep_level(1)
        self._give_cache_back(patience_s)
        if level == ENGINE_ENDS and self._page.sleep_level:
            self._page.set_sleep_level(ENGINE_ENDS)
            self._await_end()

    def wake_up(self) -> None:
        """See EngineClient.wake_up()."""
        if self._page.sleep_level == ENGINE_ENDS:
            self._await_end()  # or the supervisor might never see that it was wanted
            if self._page.sleep_level == ENGINE_ENDS:
                self._page.end_engine_sleep()
            self._await_start()
        elif self._page.sleep_level:
            self._take_cache()
            self._page.set_sleep_level(0)

    def _give_cache_back(self, patience_s: float) -> None:
        """Returns early where somebody wakes the engine meanwhile."""
        self._tell(Sleep(aborts=False))
        if self._falls_asleep(patience_s):
            return
        self._tell(Sleep(aborts=True))
        if not self._falls_asleep(_ANSWER_S):
            raise EngineFaultError("The engine did not fall asleep.")

    def _falls_asleep(self, patience_s: float) -> bool:
        """Wait until it sleeps, or is to be awake again; False when the time is over first."""
        deadline = time.monotonic() + patience_s
        while self._page.sleep_level and not self._stats(_ANSWER_S)["is_asleep"]:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _take_cache(self) -> None:
        before = self._stats(_ANSWER_S)
        self._tell(WakeUp())

        def is_answered() -> bool:
            now = self._stats(_ANSWER_S)
            if now["num_failed_wake_ups"] > before["num_failed_wake_ups"]:
                raise NotReadyError(
                    "There is no memory for the KV cache: free some and wake the engine again."
                )
            return now["num_wake_ups"] > before["num_wake_ups"]

        self._await(is_answered, "The engine did not wake up.")

    def _await_end(self) -> None:
        self._await(lambda: not self._page.engine_pid, "The engine process did not end.")

    def _await_start(self) -> None:
        """A start has its own time-out and its own number of tries: see the supervisor."""
        while not (state := self._page.read()).is_ready:
            if state.is_draining:
                raise NotReadyError("The server is shutting down.")
            if not state.is_alive:
                raise EngineFaultError("The engine failed to start.")
            time.sleep(_POLL_S)

    def _await(self, is_done: Callable[[], bool], failure: str) -> None:
        deadline = time.monotonic() + _ANSWER_S
        while not is_done():
            if time.monotonic() > deadline:
                raise EngineFaultError(failure)
            time.sleep(_POLL_S)
