"""gunicorn's settings for an Octavo server, the same however it is launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.server.arbiter import WORKER_MARGIN_S, adopt

if TYPE_CHECKING:
    from octavo.config import ServeConfig

HUB_TIMEOUT_S = 60  # a worker whose event loop stands still for so long is killed and replaced
BACKLOG = 2048


def gunicorn_settings(config: ServeConfig, **adopting: Any) -> dict[str, Any]:
    """The settings by gunicorn's names.

    Args:
        config: The server's settings.
        adopting: More arguments for adopt().
    """

    def on_starting(arbiter: Any) -> None:
        adopt(arbiter, config, **adopting)

    def when_ready(arbiter: Any) -> None:
        arbiter.start_supervisor()

    def pre_fork(arbiter: Any, worker: Any) -> None:
        arbiter.place_worker(worker)

    def child_exit(arbiter: Any, worker: Any) -> None:
        arbiter.forget_worker(worker)

    return {
        "bind": f"unix:{config.uds}" if config.uds else f"{_bracketed(config.host)}:{config.port}",
        "workers": config.api_server_count,
        "worker_class": "octavo.server.worker.Worker",
        "backlog": BACKLOG,
        "timeout": HUB_TIMEOUT_S,
        "graceful_timeout": int(config.shutdown_timeout + WORKER_MARGIN_S) + 1,
        "keepalive": max(1, round(config.keep_alive_timeout)),
        "control_socket_disable": True,
        "certfile": config.ssl_certfile or None,
        "keyfile": config.ssl_keyfile or None,
        "logger_class": "octavo.server.gunicorn_logger.GunicornLogger",
        "loglevel": config.log_level,
        "accesslog": None if config.disable_log_requests else "-",
        "proc_name": "octavo",
        "umask": 0o077,  # of a --uds socket
        "on_starting": on_starting,
        "when_ready": when_ready,
        "pre_fork": pre_fork,
        "child_exit": child_exit,
    }


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
