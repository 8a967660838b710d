"""gunicorn's messages in the form of ours."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from gunicorn.glogging import Logger

from octavo.logs import LOGGER_NAME
from octavo.server.request_report import REPORT, REQUEST_ID

if TYPE_CHECKING:
    from datetime import timedelta

PROBES = frozenset({"/health", "/ready", "/readyz", "/ping", "/livez", "/startupz", "/metrics"})


class GunicornLogger(Logger):  # type: ignore[misc]
    """Passes what matters to our logger, and writes a line for each request.

    What gunicorn tells about its own processes is of use only to those who debug it.
    """

    def setup(self, cfg: Any) -> None:
        """Use our handlers instead of gunicorn's."""
        self.cfg = cfg
        self._access_log_enabled = bool(cfg.accesslog)
        self.error_log = logging.getLogger(f"{LOGGER_NAME}.gunicorn")
        self.access_log = logging.getLogger(f"{LOGGER_NAME}.access")

    def info(self, msg: Any, *args: Any, **kwargs: Any) -> None:
        """Less important than gunicorn thinks."""
        self.error_log.debug(msg, *args, **kwargs)

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """One line for a request: who, what, how it ended; none for a probe."""
        if not self._access_log_enabled:
            return
        status = str(resp.status).split(None, 1)[0]
        path = environ.get("PATH_INFO", "")
        if path in PROBES:
            return
        del req
        seconds = request_time.total_seconds()
        peer = f"{environ.get('REMOTE_ADDR') or 'unix'}:{environ.get('REMOTE_PORT', '')}"
        method, protocol = environ.get("REQUEST_METHOD"), environ.get("SERVER_PROTOCOL")
        self.access_log.info(
            '%s - "%s %s %s" %s %.3f s',
            *(peer, method, path, protocol, status, seconds),
            extra={
                "fields": {
                    "client": peer,
                    "method": method,
                    "path": path,
                    "status": int(status) if status.isdecimal() else status,
                    "seconds": round(seconds, 6),
                    "request_id": environ.get(REQUEST_ID),
                    **_cost(environ),
                }
            },
        )


def _cost(environ: dict[str, Any]) -> dict[str, object]:
    """What a request that generated has cost."""
    report = environ.get(REPORT)
    return {} if report is None else dict(report().fields())
