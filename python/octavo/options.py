"""What an option of the configuration is: its names, its parser and its limits."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ENV_PREFIX = "OCTAVO_"
AUTO = "auto"

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


# --- Parsers: text from a flag or variable, or a value from a file, to the field's type ----------


def parse_str(value: object) -> str:
    """A string; numbers of a YAML file are taken as written."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError("expected text")


def parse_int(value: object) -> int:
    """A whole number, in decimal digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _is_digits(value.strip().lstrip("+-")):
        return int(value)
    raise ValueError("expected a whole number")


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def parse_float(value: object) -> float:
    """A finite number."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            raise ValueError("expected a number") from None
        if abs(number) < float("inf"):
            return number
    raise ValueError("expected a number")


def parse_bool(value: object) -> bool:
    """true/false, yes/no, on/off, 1/0."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError("expected true or false")


def parse_size(value: object) -> int:
    """A whole number with an optional unit: 8k, 4G, 512MiB."""
    text = str(value).strip().lower().removesuffix("b")
    digits = text.rstrip("kmgi")
    unit = text[len(digits) :]
    if isinstance(value, bool) or not _is_digits(digits.strip()) or unit not in _UNITS:
        raise ValueError("expected a size such as 4GiB or 500M")
    return int(digits) * _UNITS[unit]


def parse_length(value: object) -> int:
    """A number of tokens, 8192 or 8k (1024 each); "auto" is 0."""
    text = str(value).strip().lower()
    if text == AUTO:
        return 0
    if text.endswith("k") and _is_digits(text[:-1]):
        return int(text[:-1]) * 1024
    return parse_int(value)


def parse_seconds_or_auto(value: object) -> float:
    """Seconds; "auto" is 0."""
    return 0.0 if value == AUTO else parse_float(value)


def parse_list(value: object) -> tuple[str, ...]:
    """Several strings: a YAML list, or text with commas."""
    if isinstance(value, list | tuple):
        return tuple(parse_str(item) for item in value)
    return tuple(part.strip() for part in parse_str(value).split(",") if part.strip())


# --- The definition of an option -----------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """What a field of ServeConfig says beside its default."""

    name: str
    group: str
    help: str
    parse: Callable[[object], Any]
    default: Any
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    metavar: str
    secret: bool
    is_list: bool

    @property
    def flag(self) -> str:
        """`--max-model-len`; a bare word for the positional MODEL."""
        return self.key if self.name == "model" else f"--{self.key}"

    @property
    def key(self) -> str:
        """The key in a configuration file."""
        return self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENV_PREFIX + self.name.upper()

    @property
    def is_switch(self) -> bool:
        """--name and --no-name, without a value."""
        return self.parse is parse_bool

    def value_of(self, raw: object, where: str) -> Any:
        """Parse and check a value.

        Raises:
            ConfigError: Naming `where` the value came from.
        """
        shown = "" if self.secret else f" {raw!r}"
        try:
            value = self.parse(raw)
        except ValueError as error:
            raise ConfigError(f"{where}: invalid value{shown}: {error}.") from None
        self._check(value, where)
        return value

    def _check(self, value: Any, where: str) -> None:
        if self.choices and value not in self.choices:
            hint = closest(str(value), self.choices)
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(self.choices)}.{hint}")
        if self.minimum is not None and value < self.minimum:
            raise ConfigError(f"{where}: {value} is below the minimum of {self.minimum:g}.")
        if self.maximum is not None and value > self.maximum:
            raise ConfigError(f"{where}: {value} is above the maximum of {self.maximum:g}.")


def option(  # noqa: PLR0913 - one keyword for each column of the table below
    text: str,
    *,
    default: Any,
    parse: Callable[[object], Any] = parse_str,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    metavar: str = "",
    group: str = "",
    secret: bool = False,
    is_list: bool = False,
) -> Any:
    """Define a field of ServeConfig; a group goes on until the next one is named."""
    metadata = {
        "help": text,
        "parse": parse,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "metavar": metavar,
        "group": group,
        "secret": secret,
        "is_list": is_list or parse is parse_list,
    }
    return dataclasses.field(default=default, metadata=metadata)


def closest(word: str, known: Sequence[str]) -> str:
    """A sentence that offers the known word nearest to a wrong one, or ""."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


# --- The command line ----------------------------------------------------------------------------


def add_argument(group: argparse._ArgumentGroup, each: Option) -> None:
    """Add an option's flag to a group of a parser. An absent one becomes None."""
    text = each.help.replace("%", "%%")
    if each.name == "model":
        group.add_argument("model", nargs="?", metavar="MODEL", help=text)
    elif each.is_switch:
        on_off = argparse.BooleanOptionalAction
        group.add_argument(each.flag, action=on_off, default=None, help=f"{text}{_default(each)}")
    elif each.is_list:
        group.add_argument(each.flag, nargs="+", metavar=each.metavar or None, help=text)
    else:
        metavar = each.metavar or ("{" + ",".join(each.choices) + "}" if each.choices else "")
        fallback = each.name.rpartition("_")[2].upper()
        group.add_argument(each.flag, metavar=metavar or fallback, help=f"{text}{_default(each)}")


def _default(each: Option) -> str:
    if each.is_switch:
        return f" (default: {'on' if each.default else 'off'})"
    if each.default in ("", 0, ()):
        return ""
    return f" (default: {each.default})"
