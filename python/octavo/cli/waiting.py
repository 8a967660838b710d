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
    """Return once the server is ready, telling its phases on standard error.

    Raises:
        ServerError: Nobody answers, the server has failed, or patience_s is over.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("") as status:
            client.wait_until_ready(
                lambda health: status.update(f"The server is {describe(health)}"), patience_s
            )
        return
    told: set[str] = set()

    def tell(health: Health) -> None:
        if health.phase not in told:
            told.add(health.phase)
            console.print(f"The server is {describe(health)}", markup=False, highlight=False)

    client.wait_until_ready(tell, patience_s)
