"""Structured output in the engine's process: compiled grammars and the token masks they allow.

A request with a grammar waits here until the grammar is compiled, then enters the engine with the
mask of its first token. From then on the engine names each token it sampled and goes on computing;
the mask of the next one is made meanwhile. Whatever fails here ends the one request that asked.
"""

from __future__ import annotations

import ctypes
import logging
import queue
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from octavo import grammar
from octavo.errors import EngineFaultError, InvalidRequestError, QueueFullError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llguidance import LLMatcher, LLTokenizer

    from octavo.model.files import ModelFiles
    from octavo.model.tokenizer import Tokenizer

_MAX_COMPILED = 128  # grammars that are kept
_MAX_COMPILED_TEXT_BYTES = 512 << 10  # of them; compiled they take up to a hundred times as much
_MAX_QUEUED = 1024
_POLL_S = 0.5

log = logging.getLogger(__name__)

SequenceKey = tuple[int, int]  # request id, sequence index


class Engine(Protocol):
    """What masks need of octavo._core.Engine, which documents it."""

    def abort(self, request_id: int) -> None:
        """Stop a request."""

    def take_mask_work(self, timeout_s: float) -> list[tuple[int, int, int]] | None:
        """Wait for sampled tokens."""

    def set_token_masks(self, sequences: list[SequenceKey], masks: bytearray) -> None:
        """Give the masks of the tokens that follow."""


class _Vocabulary:
    """A tokenizer in the form in which llguidance takes one."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self.is_tokenizer_wrapper = True
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        # Logits are often wider than the tokenizer: what has no text is never allowed.
        named = range(min(vocab_size, tokenizer.max_token_id + 1))
        self.tokens = [tokenizer.token_bytes.of(id_) for id_ in named]
        self.tokens += [b""] * (vocab_size - len(self.tokens))
        self.special_token_ids = sorted(i for i in tokenizer.token_bytes.special_ids if i in named)

    def __call__(self, text: bytes | str) -> list[int]:
        shown = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(shown, add_special_tokens=False)


def grammar_tokenizer(
    tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]
) -> LLTokenizer:
    """A model's vocabulary for grammars; takes a fraction of a second.

    Raises:
        InvalidRequestError: The model has no token that ends an output.
    """
    from llguidance import LLTokenizer  # noqa: PLC0415 - only where structured output is used

    ends = [id_ for id_ in eos_token_ids if 0 <= id_ < vocab_size]
    if not ends:
        raise InvalidRequestError("This model has no end token: structured output cannot end.")
    vocabulary: Any = _Vocabulary(tokenizer, vocab_size, ends[0])
    return LLTokenizer(vocabulary, n_vocab=vocab_size, eos_token=ends)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar ready for use.

    Attributes:
        matcher: At the grammar's start; to be copied.
        mask: Of the first token.
    """

    matcher: LLMatcher
    mask: bytes


class GrammarCompiler:
    """Compiles grammars, and keeps those used last. For one thread at a time.

    Args:
        make_tokenizer: Called once, for the first grammar.
        vocab_size: Width of the logits.
    """

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer], vocab_size: int) -> None:
        self._make_tokenizer = make_tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._mask_bytes = mask_bytes(vocab_size)
        self._kept: OrderedDict[str, Compiled] = OrderedDict()
        self._kept_bytes = 0  # of the texts

    def compile(self, text: str) -> Compiled:
        """The compiled grammar.

        Raises:
            InvalidRequestError: It is malformed, too costly, or allows no output.
        """
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        compiled = self._compile(text)
        self._kept[text] = compiled
        self._kept_bytes += len(text)
        while len(self._kept) > 1 and (
            len(self._kept) > _MAX_COMPILED or self._kept_bytes > _MAX_COMPILED_TEXT_BYTES
        ):
            oldest, _ = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest)
        return compiled

    def _compile(self, text: str) -> Compiled:
        from llguidance import LLMatcher  # noqa: PLC0415

        if self._tokenizer is None:
            self._tokenizer = self._make_tokenizer()
        matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=grammar.limits())
        mask = bytearray(self._mask_bytes)
        if not matcher.is_error():
            fill_mask(matcher, mask, 0, len(mask))
        if matcher.is_error():
            raise InvalidRequestError(f"The grammar is not usable: {_first_line(matcher)}.")
        if not any(mask):
            raise InvalidRequestError("The grammar allows no output.")
        return Compiled(matcher, bytes(mask))


def grammar_compiler(files: ModelFiles, tokenizer: str, vocab_size: int) -> GrammarCompiler:
    """Compiles a model's grammars; nothing of the tokenizer is read before the first one."""

    def make_tokenizer() -> LLTokenizer:
        ends = files.generation_config().eos_token_ids
        return grammar_tokenizer(files.tokenizer(tokenizer), vocab_size, ends)

    return GrammarCompiler(make_tokenizer, vocab_size)


def mask_bytes(vocab_size: int) -> int:
    """Bytes of one mask: a bit a token, in words of 32."""
    return (vocab_size + 31) // 32 * 4


def fill_mask(matcher: LLMatcher, masks: bytearray, begin: int, size: int) -> None:
    """Write a mask into its place; the interpreter lock is released meanwhile."""
    place = (ctypes.c_char * size).from_buffer(masks, begin)
    matcher.unsafe_compute_mask_ptr(ctypes.addressof(place), size)


class _Followed:
    """A request with a grammar. A sequence gets its matcher with its first token.

    A matcher can take 100 KB: those that wait in the engine must not have one.
    """

    def __init__(self, start: LLMatcher, n: int) -> None:
        self._start = start
        self._matchers: dict[int, LLMatcher] = {}
        self.num_left = n

    def matcher(self, index: int) -> LLMatcher:
        """Of a sequence, where its output is now."""
        if index not in self._matchers:
            self._matchers[index] = self._start.deep_copy()
        return self._matchers[index]

    def end(self, index: int) -> None:
        """Forget a sequence that has ended."""
        self._matchers.pop(index, None)
        self.num_left -= 1


class MaskMaker:
    """Follows the sequences that have a grammar and makes their masks, on a thread of its own.

    Args:
        engine: Started.
        vocab_size: Width of the logits.
        refuse: Told of a request that its grammar ends; it is aborted already.
    """

    def __init__(
        self, engine: Engine, vocab_size: int, refuse: Callable[[int, RequestError], None]
    ) -> None:
        self._engine = engine
        self._mask_bytes = mask_bytes(vocab_size)
        self._refuse = refuse
        self._requests: dict[int, _Followed] = {}  # dict operations are atomic
        self._thread = threading.Thread(target=self._run, name="grammar-masks", daemon=True)

    def start(self) -> None:
        """Begin; the thread ends with the engine."""
        self._thread.start()

    def add(self, request_id: int, n: int, compiled: Compiled) -> None:
        """Follow a request that is about to enter the engine."""
        self._requests[request_id] = _Followed(compiled.matcher, n)

    def remove(self, request_id: int) -> None:
        """Forget a request that the engine has not taken."""
        self._requests.pop(request_id, None)

    def _run(self) -> None:
        while (work := self._engine.take_mask_work(_POLL_S)) is not None:
            advanced: dict[SequenceKey, LLMatcher] = {}
            for request_id, index, token_id in work:
                followed = self._requests.get(request_id)
                if followed is None:
                    continue
                if token_id >= 0:
                    matcher = followed.matcher(index)
                    matcher.consume_token(token_id)  # a failure shows in the mask
                    advanced[request_id, index] = matcher
                    continue
                advanced.pop((request_id, index), None)
                followed.end(index)
                if followed.num_left == 0:
                    self.remove(request_id)
            if advanced:
                self._make(advanced)

    def _make(self, matchers: Mapping[SequenceKey, LLMatcher]) -> None:
        size = self._mask_bytes
        masks = bytearray(size * len(matchers))
        for number, (key, matcher) in enumerate(matchers.items()):
            fill_mask(matcher, masks, number * size, size)
            if matcher.is_error():
                self._give_up(key, matcher)
        self._engine.set_token_masks(list(matchers), masks)

    def _give_up(self, key: SequenceKey, matcher: LLMatcher) -> None:
        log.debug("Grammar of request %d failed: %s", key[0], _first_line(matcher))
        self._engine.abort(key[0])
        self._refuse(key[0], InvalidRequestError("The grammar is too complex for this output."))


class GrammarQueue:
    """Requests on their way into the engine that wait for their grammars.

    Args:
        compiler: Used by this queue's thread only.
        masks: Follows the requests that enter.
        refuse: Told of a request that does not enter.
    """

    def __init__(
        self,
        compiler: GrammarCompiler,
        masks: MaskMaker,
        refuse: Callable[[int, RequestError], None],
    ) -> None:
        self._compiler = compiler
        self._masks = masks
        self._refuse = refuse
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._ids: set[int] = set()  # waiting
        self._lock = threading.Lock()  # of _ids, and while a request enters the engine
        self._thread = threading.Thread(target=self._run, name="grammar-compiler", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what waits is forgotten."""
        self._queue.put(None)

    def submit(self, request_id: int, n: int, text: str, enter: Callable[[bytes], None]) -> None:
        """Compile a request's grammar, then call `enter` with the mask of its first token.

        Raises:
            QueueFullError: Too many wait.
        """
        with self._lock:
            # Those that were aborted while they waited leave the queue when it is their turn.
            if max(len(self._ids), self._queue.qsize()) >= _MAX_QUEUED:
                raise QueueFullError("Too many requests are waiting. Try again later.")
            self._ids.add(request_id)
        self._queue.put(_Waiting(request_id, n, text, enter))

    def abort(self, request_id: int) -> bool:
        """Forget a request; False if it does not wait here."""
        with self._lock:
            if request_id not in self._ids:
                return False
            self._ids.remove(request_id)
            return True

    def _run(self) -> None:
        while (waiting := self._queue.get()) is not None:
            try:
                if waiting.request_id in self._ids:
                    self._enter(waiting, self._compiler.compile(waiting.text))
            except RequestError as error:
                if self.abort(waiting.request_id):
                    self._refuse(waiting.request_id, error)
            except Exception:
                log.exception("A grammar could not be compiled")
                if self.abort(waiting.request_id):
                    fault = EngineFaultError("The grammar could not be compiled.")
                    self._refuse(waiting.request_id, fault)

    def _enter(self, waiting: _Waiting, compiled: Compiled) -> None:
        with self._lock:  # an abort now finds the request here or in the engine, never in between
            if waiting.request_id not in self._ids:
                return
            self._masks.add(waiting.request_id, waiting.n, compiled)
            try:
                waiting.enter(compiled.mask)
            except BaseException:
                self._masks.remove(waiting.request_id)
                raise
            self._ids.remove(waiting.request_id)


@dataclass(frozen=True, slots=True)
class _Waiting:
    request_id: int
    n: int
    text: str
    enter: Callable[[bytes], None]


def _first_line(matcher: LLMatcher) -> str:
    return str(matcher.get_error()).partition("\n")[0][:200]
