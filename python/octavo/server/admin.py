"""Administration, served only with --enable-admin and to holders of its own keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.server.openapi import Operation
from octavo.version import __version__

if TYPE_CHECKING:
    import falcon

    from octavo.server.context import ServerContext


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
