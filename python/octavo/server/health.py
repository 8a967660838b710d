"""The probes: is the server ready, alive, started. They ask nobody and never queue."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import falcon
import msgspec

from octavo.errors import OctavoError
from octavo.sampling_params import SamplingParams
from octavo.server.readiness import retry_after_s

if TYPE_CHECKING:
    from octavo.engine.client import EngineClient, EngineState
    from octavo.server.readiness import Readiness

GENERATE_TIMEOUT_S = 10.0
_PROBE_TOKEN = 0

_encode = msgspec.json.Encoder().encode


class _Probe:
    """Answers GET and HEAD with 200, or 503 with the reason and Retry-After."""

    answers_while_loading: ClassVar[bool] = True
    is_open: ClassVar[bool] = True  # no key is asked for

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answer the probe."""
        state = self._readiness.state()
        body = self.failure(req, state)
        resp.content_type = falcon.MEDIA_JSON
        resp.cache_control = ["no-store"]
        resp.data = _encode(body or {"status": "healthy"})
        if body is not None:
            resp.status = falcon.HTTP_503
            resp.retry_after = retry_after_s(state)

    on_head = on_get

    def failure(self, req: falcon.Request, state: EngineState) -> dict[str, Any] | None:
        """The body of a 503, or None for a 200."""
        raise NotImplementedError


class ReadyProbe(_Probe):
    """/health, /ready, /readyz, /ping: would a request be served now?

    With ?generate=1 a real token is made.
    """

    def __init__(self, readiness: Readiness, engine: EngineClient) -> None:
        super().__init__(readiness)
        self._engine = engine

    def failure(self, req: falcon.Request, state: EngineState) -> dict[str, Any] | None:
        """Not ready, or asked for a token and none came."""
        if not state.is_ready:
            return describe(state)
        if req.get_param_as_bool("generate"):
            return self._generate()
        return None

    def _generate(self) -> dict[str, Any] | None:
        sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        deadline = time.monotonic() + GENERATE_TIMEOUT_S
        try:
            with self._engine.submit([_PROBE_TOKEN], sampling) as stream:
                while not stream.is_finished and time.monotonic() < deadline:
                    output = stream.get(max(0.0, deadline - time.monotonic()))
                    if output is not None and output.token_ids:
                        return None
        except OctavoError as error:
            return {"status": "unhealthy", "reason": str(error)}
        return {"status": "unhealthy", "reason": "No token was made in time."}


class LiveProbe(_Probe):
    """/livez: the process serves, and a started engine shows signs of life."""

    def failure(self, req: falcon.Request, state: EngineState) -> dict[str, Any] | None:
        """The engine died or is stuck."""
        del req
        return None if state.is_alive else describe(state)


class StartedProbe(_Probe):
    """/startupz: the start ended well, whatever came later."""

    def __init__(self, readiness: Readiness) -> None:
        super().__init__(readiness)
        self._has_started = False

    def failure(self, req: falcon.Request, state: EngineState) -> dict[str, Any] | None:
        """Still starting."""
        del req
        has_served = state.is_ready or state.sleep_level > 0 or state.generation > 1
        self._has_started = self._has_started or has_served
        return None if self._has_started else describe(state)


def describe(state: EngineState) -> dict[str, Any]:
    """The body of a 503."""
    if state.is_draining:
        return {"status": "draining"}
    if not state.is_alive or state.phase == "failed":
        return {"status": "unhealthy", "reason": state.reason}
    if state.sleep_level:
        return {"status": "sleeping", "level": state.sleep_level}
    body: dict[str, Any] = {
        "status": "loading",
        "phase": state.phase,
        "progress": round(state.progress, 3),
        "elapsed_s": round(state.elapsed_s, 1),
    }
    if state.bytes_total:
        body["bytes_done"], body["bytes_total"] = state.bytes_done, state.bytes_total
        body["bytes_per_s"] = round(state.bytes_per_s)
        if (remaining_s := state.remaining_s) is not None:
            body["remaining_s"] = round(remaining_s, 1)
    return body


def probe_routes(readiness: Readiness, engine: EngineClient) -> dict[str, _Probe]:
    """Path to resource."""
    ready = ReadyProbe(readiness, engine)
    return {
        "/health": ready,
        "/ready": ready,
        "/readyz": ready,
        "/ping": ready,
        "/livez": LiveProbe(readiness),
        "/startupz": StartedProbe(readiness),
    }
