"""Waits for a server that still loads, and shows how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from octavo.cli.openai_client import Health, OpenAIClient


def describe(health: Health) -> str:
    """The phase in words: `loading weights, 42 %, 3.1 s`."""
    parts = [health.phase.replace("_", " ")]
    if health.progress is not None:
        parts.append(f"{health.progress:.0%}".replace("%", " %"))
    if health.elapsed_s is not None:
        parts.append(f"{health.elapsed_s:.1f} s")
    return ", ".join(parts)


def wait_until_ready(client: OpenAIClient, patience_s: float) -> None:
    """Return once the server is ready. Says on standard error what it waits for.

    Raises:
        ServerError: Nobody answers, the server has failed, or patience_s is over.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        client.wait_until_ready(lambda _: None, patience_s)
        return
    with console.status("") as status:
        client.wait_until_ready(
            lambda health: status.update(f"The server is {describe(health)}"), patience_s
        )
