"""Administration, served only with --enable-admin and to holders of its own keys."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import EngineFaultError
from octavo.server.openapi import Operation
from octavo.version import __version__

if TYPE_CHECKING:
    import falcon

    from octavo.server.context import ServerContext


_CHECK_TIMEOUT_S = 10.0
_CHECK_POLL_S = 0.01


class ResetPrefixCacheResource:
    """POST /reset_prefix_cache."""

    is_admin = True
    operations = {"post": Operation(summary="Forget cached prefixes")}  # noqa: RUF012 - a constant

    def __init__(self, context: ServerContext) -> None:
        self._engine = context.engine

    def on_post(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Forget every cached block that nobody holds."""
        self._engine.reset_prefix_cache()
        resp.data = b"{}"


class SelfCheckResource:
    """POST /self_check."""

    is_admin = True
    operations = {  # noqa: RUF012 - a constant
        "post": Operation(summary="Check the engine's accounting of blocks and slots")
    }

    def __init__(self, context: ServerContext) -> None:
        self._engine = context.engine

    def on_post(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Have everything counted again; the engine's counters, or a 500 if they are wrong."""
        before = self._engine.stats(_CHECK_TIMEOUT_S)["num_self_checks"]
        self._engine.self_check()
        deadline = time.monotonic() + _CHECK_TIMEOUT_S
        while (stats := self._engine.stats(_CHECK_TIMEOUT_S))["num_self_checks"] <= before:
            if time.monotonic() > deadline:
                raise EngineFaultError("The engine did not check itself in time.")
            time.sleep(_CHECK_POLL_S)
        resp.data = msgspec.json.encode(stats)


class ServerInfoResource:
    """GET /server_info."""

    is_admin = True
    operations = {"get": Operation(summary="Facts about the server")}  # noqa: RUF012 - a constant

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """What runs here and how its start went."""
        context = self._context
        state, info = context.engine.state(), context.model_info()
        resp.data = msgspec.json.encode(
            {
                "version": __version__,
                "models": context.config.model_names,
                "max_model_len": info.max_model_len,
                "vocab_size": info.vocab_size,
                "engine_generation": state.generation,
                "uptime_s": round(state.elapsed_s, 1),
                "startup_s": {name: round(s, 3) for name, s in state.phase_seconds.items()},
            }
        )

    on_head = on_get
