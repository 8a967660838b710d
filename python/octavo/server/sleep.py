"""POST /sleep and /wake_up, GET /is_sleeping: giving memory back while nobody needs the model.

They are administration: served only with --enable-admin and to holders of its own keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.errors import InvalidRequestError
from octavo.server.openapi import Operation

if TYPE_CHECKING:
    import falcon

    from octavo.server.context import ServerContext
    from octavo.server.readiness import Readiness

_LEVELS = {"1": 1, "2": 2}
_MODES = ("wait", "abort")


class _SleepRoute:
    """What the routes share: who may use them, and what they answer."""

    is_admin = True
    answers_while_loading = True  # a sleeping server is not ready, and may sleep more deeply

    def __init__(self, context: ServerContext) -> None:
        self._engine = context.engine

    def _say(self, resp: falcon.Response) -> None:
        level = self._engine.state().sleep_level
        resp.data = msgspec.json.encode({"is_sleeping": level > 0, "level": level})


class SleepResource(_SleepRoute):
    """POST /sleep?level=1 or 2."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(
            summary="Give the KV cache back (level 1), or the weights too (level 2)",
            query={
                "level": {"type": "integer", "enum": [1, 2], "default": 1},
                "mode": {"enum": list(_MODES), "default": "wait"},
            },
        )
    }

    def __init__(self, context: ServerContext, readiness: Readiness) -> None:
        super().__init__(context)
        self._patience_s = context.config.shutdown_timeout
        self._readiness = readiness

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Refuse requests from now on, let those that run finish or end them, then free memory."""
        level = _LEVELS.get(req.get_param("level", default="1"))
        if level is None:
            raise InvalidRequestError("level: expected 1 or 2.", param="level")
        mode = req.get_param("mode", default="wait")
        if mode not in _MODES:
            raise InvalidRequestError("mode: expected wait or abort.", param="mode")
        if not self._engine.state().sleep_level:
            self._readiness.check()
        self._engine.sleep(level, self._patience_s if mode == "wait" else 0.0)
        self._say(resp)


class WakeUpResource(_SleepRoute):
    """POST /wake_up."""

    operations = {  # noqa: RUF012 - a constant
        "post": Operation(summary="End a sleep; answers when requests are served again")
    }

    def on_post(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Take the memory again; nothing to do for a server that is awake."""
        self._engine.wake_up()
        self._say(resp)


class IsSleepingResource(_SleepRoute):
    """GET /is_sleeping."""

    operations = {  # noqa: RUF012 - a constant
        "get": Operation(summary="Whether the server sleeps, and how deeply")
    }

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answer in every phase."""
        self._say(resp)

    on_head = on_get
