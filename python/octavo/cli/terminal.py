"""A conversation in the terminal, and one answer for a pipe."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from octavo.cli.answer_view import show_markdown, show_plain, usage_line
from octavo.cli.conversation import Conversation, run_command
from octavo.errors import ConfigError, OctavoError

if TYPE_CHECKING:
    from rich.console import Console

    from octavo.cli.openai_client import OpenAIClient, Usage

PATH = "/v1/chat/completions"
QUOTES = '"""'


def given_message(words: str | None) -> str | None:
    """The message of the command line, with piped text below it; None means a conversation.

    Raises:
        ConfigError: The input is a pipe without a word in it.
    """
    if sys.stdin.isatty():
        return words
    message = "\n\n".join(part for part in (words, sys.stdin.read().strip()) if part)
    if not message:
        raise ConfigError("octavo chat: the message is empty")
    return message


def answer_once(client: OpenAIClient, chat: Conversation, message: str, *, stats: bool) -> None:
    """Stream the answer to one message to standard output.

    Raises:
        ServerError: The server gives no whole answer.
    """
    chat.ask(message)
    with client.stream(PATH, chat.body()) as answer:
        for piece in answer.texts():
            print(piece, end="", flush=True)
    print()
    if stats:
        print(usage_line(answer.usage), file=sys.stderr)


class Terminal:
    """A conversation by keyboard."""

    def __init__(
        self, client: OpenAIClient, chat: Conversation, console: Console, *, plain: bool
    ) -> None:
        self._client = client
        self._chat = chat
        self._console = console
        self._show = show_plain if plain or not console.is_terminal else show_markdown

    def converse(self) -> None:
        """Read, answer, repeat, until /exit or the end of input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, PLC0415 - its import gives input() editing and a history
        self._note(f"{self._chat.model} at {self._client.url}. /help lists the commands.")
        while not self._chat.ended:
            try:
                text = self._read().strip()
            except KeyboardInterrupt:
                self._console.print()
                continue
            except EOFError:
                self._console.print()
                return
            if text.startswith("/"):
                self._command(text)
            elif text:
                self._answer(text)

    def _read(self) -> str:
        """One message: a line, lines joined by a backslash, or lines between triple quotes."""
        line = input(">>> ")
        if line.strip().startswith(QUOTES):
            lines = [line.strip().removeprefix(QUOTES)]
            while not lines[-1].rstrip().endswith(QUOTES):
                lines.append(input("... "))
            lines[-1] = lines[-1].rstrip().removesuffix(QUOTES)
            return "\n".join(lines)
        while line.endswith("\\"):
            line = f"{line[:-1]}\n{input('... ')}"
        return line

    def _command(self, text: str) -> None:
        try:
            self._note(run_command(self._chat, text))
        except OctavoError as error:
            self._complain(error)

    def _answer(self, text: str) -> None:
        self._chat.ask(text)
        said = ""
        try:
            with self._client.stream(PATH, self._chat.body()) as answer:
                try:
                    self._show(self._console, answer.texts())
                finally:
                    said = answer.text
            self._end(answer.usage)
        except KeyboardInterrupt:
            self._note("\nStopped.")
        except OctavoError as error:
            self._complain(error)
        self._chat.answered(said)

    def _end(self, usage: Usage) -> None:
        if self._show is show_plain:
            self._console.print()
        self._note(usage_line(usage))

    def _note(self, text: str) -> None:
        if text:
            self._console.print(text, style="dim", markup=False)

    def _complain(self, error: OctavoError) -> None:
        self._console.print(str(error), style="red", markup=False)
