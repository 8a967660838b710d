"""Token ids to text, a piece at a time: whole code points only, stop strings cut exactly.

A tokenizer whose tokens stand for bytes (byte-level BPE; SentencePiece with byte fallback) is
decoded from a table of those bytes, which is both faster and more robust than asking the library
for each step. Anything else goes through the library over a sliding window.

Where the bytes are not valid UTF-8, each maximal ill-formed part becomes one U+FFFD, as Unicode
recommends; the text is the same however the tokens were grouped into calls.
"""

from __future__ import annotations

import codecs
import functools
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octavo.model.stop_matcher import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import tokenizers

_SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character
_REPLACEMENT = "\ufffd"


class TokenBytes:
    """What each token id of one tokenizer stands for. Made once, shared by all requests.

    Attributes:
        special_ids: Ids that skip_special_tokens leaves out.
        tokenizer: The library's tokenizer.
        per_token: Whether text is the plain concatenation of the tokens' bytes.
        strips_leading_space: Whether the very first space of a text belongs to the encoding.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self.tokenizer = tokenizer
        kind = _decoder_kind(tokenizer)
        self.per_token = kind is not None
        self._is_byte_level = kind == "byte-level"
        self.strips_leading_space = kind == "sentencepiece-strip"
        to_bytes = _byte_level_token if kind == "byte-level" else _sentencepiece_token
        self._shown = _ByteTable(tokenizer, to_bytes)
        self._spoken = _ByteTable(tokenizer, to_bytes, hidden=self.special_ids)

    @functools.cached_property
    def density(self) -> TextDensity:
        """How few tokens a text can have."""
        tokenizer = self.tokenizer
        added = list(tokenizer.get_added_tokens_decoder().values())
        vocabulary = tokenizer.get_vocab()
        is_bounded = (
            self._is_byte_level
            and _state(tokenizer.normalizer) in _NORMALIZERS
            and not any(token.lstrip or token.rstrip for token in added)
            and b'"Removed"' not in _state(tokenizer.pre_tokenizer)
        )
        if not is_bounded:
            return TextDensity(0, b"")
        longest = max(map(len, vocabulary))  # a character for a byte, but in added tokens
        longest = max(longest, *(len(token.content.encode()) for token in added), 1)
        dropped = bytes(byte for character, byte in _BYTE_OF.items() if character not in vocabulary)
        return TextDensity(longest * _NORMALIZERS[_state(tokenizer.normalizer)], dropped)

    def of(self, token_id: int) -> bytes:
        """Bytes of one token by itself, special tokens included; empty for an unknown id."""
        if self.per_token:
            return self._shown[token_id]
        return self.tokenizer.decode([token_id], skip_special_tokens=False).encode()

    def table(self, *, skip_special_tokens: bool) -> Mapping[int, bytes]:
        """Bytes by token id. Requires: per_token."""
        return self._spoken if skip_special_tokens else self._shown

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of a whole sequence of tokens."""
        detokenizer = Detokenizer(
            self, DetokenizerOptions(skip_special_tokens=skip_special_tokens, at_start=True)
        )
        return detokenizer.feed(token_ids)[0] + detokenizer.flush()


class TextDensity(msgspec.Struct, frozen=True):
    """A text has at least as many tokens as its bytes, without the dropped ones, divided by this.

    Attributes:
        bytes_per_token: At most; 0 where nothing is known, because a step from text to tokens can
            leave anything out.
        dropped: Values of bytes that have no token.
    """

    bytes_per_token: int
    dropped: bytes


class DetokenizerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How one sequence's tokens become text.

    Attributes:
        skip_special_tokens: Leave special tokens out of the text.
        stop: Strings that end the text.
        include_stop_str_in_output: Keep the stop string, or the token of a stop id, in the text.
        min_tokens: The text of the first min_tokens tokens is not searched for stop strings.
        at_start: No text comes before the first token, as when a whole text is decoded.
    """

    skip_special_tokens: bool = True
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    min_tokens: int = 0
    at_start: bool = False


class Detokenizer:
    """Turns one sequence's tokens into text as they come.

    Attributes:
        num_tokens: Tokens taken so far; none after the one that completed a stop string.
        stop_string: The stop string that ended the text, or None.
        is_plain: Every token becomes text, up to the last feed().
    """

    def __init__(self, token_bytes: TokenBytes, options: DetokenizerOptions) -> None:
        self._options = options
        stream = _ByteStream if token_bytes.per_token else _WindowStream
        self._stream: _TextStream = stream(token_bytes, options)
        self._matcher = StopMatcher(options.stop) if options.stop else None
        self.num_tokens = 0
        self.stop_string: str | None = None
        self.is_plain = not options.stop

    def feed_plain(self, token_ids: Sequence[int]) -> str:
        """feed() where no token is a stop id. Requires: is_plain."""
        self.num_tokens += len(token_ids)
        return self._stream.feed(token_ids)

    def feed(self, token_ids: Sequence[int], stop_token_id: int = -1) -> tuple[str, bool]:
        """Take the next tokens.

        Args:
            token_ids: The new tokens, in order.
            stop_token_id: The id that ended the sequence when it is the last of token_ids; its
                own text is left out unless include_stop_str_in_output.

        Returns:
            The text that is now certain, and whether a stop string ended it. After that no more
            text comes.
        """
        if self.stop_string is not None:
            return "", True
        if self._matcher is None:
            voiced = self._voiced(token_ids, stop_token_id)
            self.num_tokens += len(token_ids)
            return self._stream.feed(voiced), False
        return self._feed_searching(self._matcher, token_ids, stop_token_id)

    def flush(self) -> str:
        """The text still held back, once no more tokens come."""
        if self.stop_string is not None:
            return ""
        rest = self._stream.flush()
        if self._matcher is None:
            return rest
        text, self.stop_string = self._matcher.feed(rest)
        if self.stop_string is None:
            return text + self._matcher.flush()
        return text + self._kept_stop()

    def _feed_searching(
        self, matcher: StopMatcher, token_ids: Sequence[int], stop_token_id: int
    ) -> tuple[str, bool]:
        parts = []
        voiced = len(self._voiced(token_ids, stop_token_id))
        for position, token_id in enumerate(token_ids):
            self.num_tokens += 1
            text = self._stream.feed((token_id,)) if position < voiced else ""
            if self.num_tokens > self._options.min_tokens:
                text, self.stop_string = matcher.feed(text)
            parts.append(text)
            if self.stop_string is not None:
                parts.append(self._kept_stop())
                return "".join(parts), True
        return "".join(parts), False

    def _voiced(self, token_ids: Sequence[int], stop_token_id: int) -> Sequence[int]:
        """The tokens that become text: not the stop id at the end, unless it is to be kept."""
        if stop_token_id < 0 or self._options.include_stop_str_in_output:
            return token_ids
        ends = len(token_ids) > 0 and token_ids[-1] == stop_token_id
        return token_ids[:-1] if ends else token_ids

    def _kept_stop(self) -> str:
        keep = self._options.include_stop_str_in_output
        return self.stop_string or "" if keep else ""


class _TextStream(Protocol):
    def feed(self, token_ids: Sequence[int]) -> str: ...

    def flush(self) -> str: ...


class _ByteStream:
    """Joins the tokens' bytes and gives out complete code points."""

    def __init__(self, token_bytes: TokenBytes, options: DetokenizerOptions) -> None:
        table = token_bytes.table(skip_special_tokens=options.skip_special_tokens)
        self._bytes_of = table.__getitem__
        self._strip = options.at_start and token_bytes.strips_leading_space
        self._rest = b""

    def feed(self, token_ids: Sequence[int]) -> str:
        data = self._rest + b"".join(map(self._bytes_of, token_ids))
        text, used = codecs.utf_8_decode(data, "replace", False)  # noqa: FBT003
        self._rest = data[used:]
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        rest, self._rest = self._rest, b""
        return rest.decode(errors="replace")


class _WindowStream:
    """Asks the library twice a token: with and without it; what was added is its text."""

    def __init__(self, token_bytes: TokenBytes, options: DetokenizerOptions) -> None:
        self._tokenizer = token_bytes.tokenizer
        self._skip = options.skip_special_tokens
        self._window: list[int] = []
        self._read = 0

    def feed(self, token_ids: Sequence[int]) -> str:
        return "".join(map(self._step, token_ids))

    def flush(self) -> str:
        text = self._new_text()
        self._window.clear()
        self._read = 0
        return text

    def _step(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        del self._window[: self._read]
        self._read = len(self._window)
        return text

    def _new_text(self) -> str:
        known = self._decode(self._window[: self._read])
        return self._decode(self._window)[len(known) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)


class _ByteTable(dict[int, bytes]):
    """Token id to bytes, filled as ids are met; bounded by the vocabulary."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        to_bytes: _ToBytes,
        hidden: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__((id_, b"") for id_ in hidden)
        self._tokenizer = tokenizer
        self._to_bytes = to_bytes

    def __missing__(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        data = self._to_bytes(token)
        self[token_id] = data
        return data


def _state(part: Any) -> bytes:
    """A part of a tokenizer as JSON."""
    return b"" if part is None else bytes(part.__getstate__())


class _ToBytes(Protocol):
    def __call__(self, token: str, /) -> bytes: ...


def _decoder_kind(tokenizer: tokenizers.Tokenizer) -> str | None:
    """How the tokenizer's decoder turns tokens into text; None when not by their bytes."""
    if tokenizer.decoder is None:
        return None
    steps = _steps(msgspec.json.decode(tokenizer.decoder.__getstate__()))
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return "byte-level"
    if not steps or steps[0] != _SENTENCEPIECE_STEPS[0]:
        return None
    if steps == _SENTENCEPIECE_STEPS[:3]:
        return "sentencepiece"
    return "sentencepiece-strip" if steps == _SENTENCEPIECE_STEPS else None


_SENTENCEPIECE_STEPS = [
    {"type": "Replace", "pattern": {"String": _SPACE_MARK}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


def _steps(decoder: dict[str, object]) -> list[dict[str, object]]:
    if decoder.get("type") != "Sequence":
        return [decoder]
    inner = decoder["decoders"]
    return list(inner) if isinstance(inner, list) else []


def _byte_level_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    other = [byte for byte in range(0x100) if byte not in plain]
    alphabet = {chr(byte): byte for byte in plain}
    alphabet.update((chr(0x100 + index), byte) for index, byte in enumerate(other))
    return alphabet


_BYTE_OF = _byte_level_alphabet()
_NORMALIZERS = {b"": 1, b'{"type":"NFC"}': 3}  # bytes of text that may become one


def _byte_level_token(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError:  # an added token with characters outside the alphabet stands for itself
        return token.encode()


def _sentencepiece_token(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(_SPACE_MARK, " ").encode()
