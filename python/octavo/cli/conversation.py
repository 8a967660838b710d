"""The state of a chat in the terminal, and the commands that change it. No terminal in here."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli.client_arguments import parse_setting
from octavo.errors import ConfigError
from octavo.options import closest

if TYPE_CHECKING:
    from collections.abc import Callable


KEYS = (
    'A text of several lines stands between """ and """, or has \\ at the end of each line.',
    "Ctrl-C stops an answer, Ctrl-D leaves.",
)


@dataclass
class Conversation:
    """Messages so far and the settings of the next request."""

    model: str
    system: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)
    ended: bool = False

    @property
    def messages(self) -> list[dict[str, str]]:
        """What a request carries."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + self.turns

    def body(self) -> dict[str, Any]:
        """The request for the next answer."""
        return {"model": self.model, "messages": self.messages, **self.settings}

    def ask(self, text: str) -> None:
        """The user says something."""
        self.turns.append({"role": "user", "content": text})

    def answered(self, text: str) -> None:
        """The model has answered, perhaps not to the end; without a word, the question goes too."""
        if text:
            self.turns.append({"role": "assistant", "content": text})
        else:
            self.take_back()

    def take_back(self) -> str:
        """Remove the last question and what followed it; returns the question, or ""."""
        while self.turns:
            turn = self.turns.pop()
            if turn["role"] == "user":
                return turn["content"]
        return ""


@dataclass(frozen=True)
class Command:
    """Something that a line beginning with a slash does; it returns what to tell the user."""

    usage: str
    help: str
    run: Callable[[Conversation, str], str]


def _help(_: Conversation, __: str) -> str:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    return "\n".join([*lines, *KEYS])


def _reset(chat: Conversation, _: str) -> str:
    chat.turns.clear()
    return "A new conversation."


def _system(chat: Conversation, text: str) -> str:
    if not text:
        return chat.system or "No system message."
    chat.system = "" if text == "-" else text
    return "System message set." if chat.system else "System message removed."


def _set(chat: Conversation, text: str) -> str:
    name, _, value = text.partition(" ")
    if not name:
        return "\n".join(f"{k} = {v}" for k, v in chat.settings.items()) or "Nothing is set."
    if not value.strip():
        chat.settings.pop(name.replace("-", "_"), None)
        return f"{name} is the server's default again."
    field_, parsed = parse_setting(name, value.strip())
    chat.settings[field_] = parsed
    return f"{field_} = {parsed}"


def _model(chat: Conversation, text: str) -> str:
    chat.model = text or chat.model
    return f"Model: {chat.model}"


def _undo(chat: Conversation, _: str) -> str:
    return "Forgot the last question." if chat.take_back() else "There is nothing to forget."


def _save(chat: Conversation, text: str) -> str:
    if not text:
        raise ConfigError("Give a file name: /save chat.md or /save chat.json")
    path = Path(text).expanduser()
    if path.suffix == ".json":
        content = json.dumps({"model": chat.model, "messages": chat.messages}, indent=2)
    else:
        content = "\n\n".join(f"**{m['role']}**\n\n{m['content']}" for m in chat.messages)
    try:
        path.write_text(content + "\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return f"Saved {len(chat.messages)} messages to {path}."


def _exit(chat: Conversation, _: str) -> str:
    chat.ended = True
    return ""


COMMANDS = {
    "help": Command("/help", "this list", _help),
    "reset": Command("/reset", "forget the conversation", _reset),
    "system": Command("/system TEXT", "set the system message; - removes it", _system),
    "set": Command("/set NAME VALUE", "set a sampling parameter; no VALUE takes it back", _set),
    "model": Command("/model NAME", "ask another model", _model),
    "undo": Command("/undo", "forget the last question and its answer", _undo),
    "save": Command("/save FILE", "write the conversation as Markdown or .json", _save),
    "exit": Command("/exit", "leave", _exit),
}
ALIASES = {"quit": "exit", "bye": "exit", "clear": "reset", "?": "help"}


def run_command(chat: Conversation, line: str) -> str:
    """Do what a line beginning with a slash says; returns what to tell the user.

    Raises:
        ConfigError: No such command, or its argument is wrong.
    """
    name, _, argument = line[1:].strip().partition(" ")
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None:
        raise ConfigError(f"No command /{name}.{closest(name, list(COMMANDS))} Try /help.")
    return command.run(chat, argument.strip())
