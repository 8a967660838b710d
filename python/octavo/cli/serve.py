"""`octavo serve`: a model behind the OpenAI API."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from octavo.config import ServeConfig, add_arguments, as_yaml
from octavo.errors import ConfigError

if TYPE_CHECKING:
    import argparse

DESCRIPTION = """Load a model and serve it over the OpenAI API. Every flag --some-name is also the
variable OCTAVO_SOME_NAME and the key some-name of a --config file; the flag wins over the variable,
the variable over the file."""
EXIT_CODES = """Exit codes: 0 ended in good order; 2 bad flag or configuration; 3 model not found
or not readable; 4 unsupported model; 5 not enough memory; 6 port or socket in use; 7 start-up timed
out; 70 engine failed; 130, 143 a second signal."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `serve` to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model over the OpenAI API",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
    )
    add_arguments(parser)
    parser.add_argument(
        "--check", action="store_true", help="check everything, print the memory plan, and end"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the configuration as YAML, and end"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until told to end.

    Raises:
        OctavoError: The configuration or the model is at fault; it has the exit code.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # until the server has handlers of its own
        signal.signal(number, _end)
    config = ServeConfig.from_cli_args(arguments)
    if arguments.print_config:
        sys.stdout.write(as_yaml(config))
        return 0
    if not config.model:
        raise ConfigError(
            "MODEL is missing; it comes before the flags, for example: "
            "octavo serve smollm2 --port 8000"
        )
    if arguments.check:
        from octavo.cli.check import check  # noqa: PLC0415

        return check(config)
    from octavo.server.launch import launch  # noqa: PLC0415 - --help needs none of it

    launch(config)
    return None


def _end(number: int, frame: object) -> None:
    """Nothing runs yet that would have to end."""
    del number, frame
    os._exit(0)
