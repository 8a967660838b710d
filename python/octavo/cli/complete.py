"""`octavo complete`: continue a text, on any OpenAI-compatible server."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from octavo.cli import client_arguments
from octavo.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from octavo.cli.openai_client import Answer

PATH = "/v1/completions"
DESCRIPTION = (
    "Continue a text as the model would. Without PROMPT, or with -, it is read from a pipe."
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `complete` to the command line."""
    parser = subparsers.add_parser("complete", help="continue a text", description=DESCRIPTION)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="text to continue")
    parser.add_argument("--echo", action="store_true", help="write the prompt, too")
    parser.add_argument("--json", action="store_true", help="one JSON document, when it is done")
    parser.add_argument("--stats", action="store_true", help="counts and speed on standard error")
    client_arguments.add_connection_arguments(parser)
    client_arguments.add_sampling_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Stream the continuation to standard output, or print one JSON document.

    Raises:
        ConfigError: There is no prompt.
        ServerError: The server gives no whole answer.
    """
    # Imported here: --help and --version need none of it.
    from octavo.cli import openai_client  # noqa: PLC0415
    from octavo.cli.answer_view import usage_line  # noqa: PLC0415
    from octavo.cli.waiting import wait_until_ready  # noqa: PLC0415

    prompt = arguments.prompt
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = sys.stdin.read()
    if not prompt:
        raise ConfigError("octavo complete: give a PROMPT, or pipe one in; it is empty")
    client = openai_client.from_arguments(arguments)
    wait_until_ready(client, arguments.wait)
    settings = client_arguments.sampling_fields(arguments)
    body = {"model": client.model(arguments.model or ""), "prompt": prompt, **settings}
    with client.stream(PATH, body) as answer:
        if not arguments.json and arguments.echo:
            print(prompt, end="", flush=True)
        for piece in answer.texts():
            if not arguments.json:
                print(piece, end="", flush=True)
    if arguments.json:
        print(json.dumps(document(body["model"], prompt, answer), ensure_ascii=False))
        return 0
    print()
    if arguments.stats:
        print(usage_line(answer.usage), file=sys.stderr)
    return 0


def document(model: str, prompt: str, answer: Answer) -> dict[str, Any]:
    """The answer as --json prints it."""
    usage = answer.usage
    return {
        "model": model,
        "prompt": prompt,
        "text": answer.text,
        "finish_reason": usage.finish_reason or None,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "first_token_s": round(usage.first_s, 6),
        "total_s": round(usage.whole_s, 6),
    }
