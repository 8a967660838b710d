"""Whether this HTTP worker can serve, and the gate in front of the routes that need the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from octavo.errors import NotReadyError

if TYPE_CHECKING:
    from collections.abc import Callable

    import falcon

    from octavo.engine.client import EngineClient, EngineState

T = TypeVar("T")

LOADING_RETRY_S = 1
DRAINING_RETRY_S = 5
UNHEALTHY_RETRY_S = 5
SLEEPING_RETRY_S = 5


class Deferred(Generic[T]):
    """A value that a thread loads while the server already answers."""

    def __init__(self, value: T | None = None) -> None:
        self._value = value

    @property
    def is_loaded(self) -> bool:
        """The value is there."""
        return self._value is not None

    def set(self, value: T) -> None:
        """Give the value to those who ask from now on."""
        self._value = value

    def get(self) -> T:
        """The value.

        Raises:
            NotReadyError: It is not loaded yet.
        """
        if self._value is None:
            raise NotReadyError("The model is not ready yet.")
        return self._value


class Readiness:
    """The engine's state as this worker's clients shall see it.

    Args:
        engine: Says how the engine does.
        is_worker_ready: Says whether this worker has all it needs beside the engine.
    """

    def __init__(self, engine: EngineClient, is_worker_ready: Callable[[], bool]) -> None:
        self._engine = engine
        self._is_worker_ready = is_worker_ready

    def state(self) -> EngineState:
        """A snapshot; ready only if a request would be served."""
        state = self._engine.state()
        if state.is_ready and not self._is_worker_ready():
            return msgspec.structs.replace(
                state, is_ready=False, phase="loading_tokenizer", progress=0.0
            )
        return state

    def check(self) -> None:
        """Let a request pass.

        Raises:
            NotReadyError: It cannot be served now; the message says why.
        """
        state = self.state()
        if not state.is_ready:
            error = NotReadyError(explain(state))
            error.retry_after_s = retry_after_s(state)
            raise error


class ReadinessMiddleware:
    """Turns requests away until they can be served.

    A resource with a true `answers_while_loading` is let through: probes, models, version, metrics.
    """

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def process_resource(
        self, _req: falcon.Request, _resp: falcon.Response, resource: object, _params: object
    ) -> None:
        """Raise NotReadyError where the routed resource needs a ready engine."""
        if not getattr(resource, "answers_while_loading", False):
            self._readiness.check()


def retry_after_s(state: EngineState) -> int:
    """Seconds after which a client may try again."""
    if state.is_draining:
        return DRAINING_RETRY_S
    if state.sleep_level:
        return SLEEPING_RETRY_S
    return LOADING_RETRY_S if state.is_alive else UNHEALTHY_RETRY_S


def explain(state: EngineState) -> str:
    """Why a request cannot be served."""
    if state.is_draining:
        return "The server is shutting down."
    if not state.is_alive:
        return "The engine is down and is being started again."
    if state.sleep_level:
        return "The server is asleep."
    return f"The model is loading: {state.phase.replace('_', ' ')}, {state.progress:.0%}."
