"""`octavo chat`: talk to any OpenAI-compatible server in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.cli import client_arguments

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Talk to a model. With MESSAGE, or with text piped in, it answers once and ends;
otherwise it is a conversation, in which /help lists the commands."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `chat` to the command line."""
    parser = subparsers.add_parser(
        "chat", help="talk to a model in the terminal", description=DESCRIPTION
    )
    parser.add_argument("message", nargs="?", metavar="MESSAGE", help="answer this and end")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--plain", action="store_true", help="do not set answers as Markdown")
    parser.add_argument("--stats", action="store_true", help="counts and speed on standard error")
    client_arguments.add_connection_arguments(parser)
    client_arguments.add_sampling_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Answer once when a message is given or piped in, else hold a conversation.

    Raises:
        ConfigError: The message is empty, or the URL is none.
        ServerError: No server answers, or not to the end.
    """
    # Imported here: --help and --version need none of it.
    from rich.console import Console  # noqa: PLC0415

    from octavo.cli import openai_client, terminal  # noqa: PLC0415
    from octavo.cli.conversation import Conversation  # noqa: PLC0415
    from octavo.cli.waiting import wait_until_ready  # noqa: PLC0415

    client = openai_client.from_arguments(arguments)
    message = terminal.given_message(arguments.message)
    wait_until_ready(client, arguments.wait)
    chat = Conversation(
        client.model(arguments.model or ""),
        arguments.system or "",
        client_arguments.sampling_fields(arguments),
    )
    if message is not None:
        terminal.answer_once(client, chat, message, stats=arguments.stats)
    else:
        console = Console(highlight=False)
        terminal.Terminal(client, chat, console, plain=arguments.plain).converse()
    return 0
