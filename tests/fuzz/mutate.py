"""Changes to JSON that leave it JSON, for targets that would else see little but syntax errors."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.0, -0.0, 1e-320, 1e308, 0.5,
    "", "x", "\0", "é", "\U0010ffff", "x" * 300, [], {}, [[]], [0], ["x"], {"a": 1}, [1] * 200,
    "auto", "required", "none", {"type": "text", "text": "x"}, {"type": "json_object"},
    {"type": "function", "function": {"name": "f", "parameters": {}}}, {"regex": "a"},
]  # fmt: skip


def mutate_json(data: bytes, max_size: int, seed: int, otherwise: Callable[..., bytes]) -> bytes:
    """Change a value, drop one, or move one to another place; the first byte is not JSON's.

    Args:
        data: A byte and, hopefully, JSON.
        max_size: Of the result.
        seed: Decides.
        otherwise: Mutates bytes: half of the time, and what is no JSON.
    """
    chance = random.Random(seed)
    try:
        value = json.loads(data[1:])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not value or chance.random() < 0.5:
        return otherwise(data, max_size)
    for _ in range(chance.randrange(1, 4)):
        _change(value, chance)
    changed = data[:1] + json.dumps(value, ensure_ascii=chance.random() < 0.5).encode(
        errors="surrogatepass"
    )
    return changed if len(changed) <= max_size else otherwise(data, max_size)


def _change(value: Any, chance: random.Random) -> None:
    places = [(holder, key) for holder in _holders(value) for key in _keys(holder)]
    if not places:
        return
    holder, key = chance.choice(places)
    what = chance.randrange(4)
    if what == 0 and isinstance(holder, dict):
        del holder[key]
    elif what == 1:
        other_holder, other_key = chance.choice(places)
        holder[key] = _copy(other_holder[other_key])
    elif what == 2 and isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), _copy(chance.choice(_VALUES)))
    else:
        holder[key] = _copy(chance.choice(_VALUES))


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _holders(value: Any) -> list[Any]:
    if not isinstance(value, dict | list):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(holder for each in list(inner) for holder in _holders(each))]


def _keys(holder: Any) -> list[Any]:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))
