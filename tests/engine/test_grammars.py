"""Structured output on a real engine with made-up weights, whose vocabulary is single bytes."""

from __future__ import annotations

import random
import threading
import time
from array import array
from typing import TYPE_CHECKING, Any

import jsonschema
import msgspec
import pytest
from llguidance import LLTokenizer

from e2e.tiny_model import make_tiny_model
from engine.core_engine import Outputs, engine_config, model_config
from octavo import _core, grammar
from octavo.engine.grammars import (
    GrammarCompiler,
    GrammarQueue,
    MaskMaker,
    grammar_tokenizer,
    mask_bytes,
)
from octavo.errors import InvalidRequestError, QueueFullError, RequestError
from octavo.model.files import ModelFiles
from octavo.model.resolve import ResolveOptions, resolve_local

if TYPE_CHECKING:
    from pathlib import Path

EOS = 256
VOCAB_SIZE = 259  # no multiple of 32
MAX_NUM_SEQS = 32


class ByteVocabulary:
    """Token k is byte k; 256 ends an output."""

    is_tokenizer_wrapper = True
    eos_token_id = EOS
    bos_token_id = None
    tokens = (*(bytes([i]) for i in range(256)), b"</s>", b"<a>", b"<b>")
    special_token_ids = (256, 257, 258)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def make_tokenizer() -> Any:
    return LLTokenizer(ByteVocabulary(), n_vocab=VOCAB_SIZE, eos_token=[EOS])


class Desk:
    """An engine with all that structured output needs."""

    def __init__(self) -> None:
        config = engine_config(
            max_num_seqs=MAX_NUM_SEQS,
            max_num_batched_tokens=512,
            num_blocks=1024,
            eos_token_ids=[EOS],
        )
        model = model_config(vocab_size=VOCAB_SIZE, max_position_embeddings=2048)
        self.engine = _core.Engine(config, model)
        self.engine.load_dummy_weights(3)
        self.engine.finish_loading()
        self.engine.allocate_kv_cache()
        self.engine.start()
        self.refused: dict[int, RequestError] = {}
        self.outputs = Outputs()
        self.compiler = GrammarCompiler(make_tokenizer, VOCAB_SIZE)
        self.masks = MaskMaker(self.engine, VOCAB_SIZE, self.refused.__setitem__)
        self.queue = GrammarQueue(self.compiler, self.masks, self.refused.__setitem__)
        self.masks.start()
        self.queue.start()

    def submit(self, id_: int, text: str, **sampling: Any) -> None:
        params = _core.SamplingParams(**{"temperature": 1.0, "max_tokens": 1500, **sampling})

        def enter(mask: bytes) -> None:
            self.engine.submit(id_, array("i", [5, 6, 7]), params, token_mask=mask)

        self.queue.submit(id_, params.n, text, enter)

    def wait(self, *ids: int) -> None:
        deadline = time.monotonic() + 60
        while not set(ids) <= self.outputs.reasons.keys() | self.refused.keys():
            assert time.monotonic() < deadline, self.outputs.reasons
            for batch in self.engine.take_outputs(0.1) or []:
                self.outputs.take(batch)

    def text(self, id_: int) -> str:
        ids = self.outputs.token_ids[id_]
        return bytes(i for i in ids if i < 256).decode()


@pytest.fixture
def desk() -> Any:
    desk = Desk()
    yield desk
    desk.queue.stop()
    desk.engine.shutdown()


def generated_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose outputs are short, however random the model is."""
    kinds = ["string", "integer", "boolean", "null", "enum", "const", "number"]
    kind = rng.choice(kinds + (["object", "array", "anyOf"] if depth < 3 else []))
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(0, 8)}
    if kind == "integer":
        low = rng.randint(-50, 50)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 200)}
    if kind == "number":
        return {"enum": [rng.randint(0, 9) / 4, -1]}
    if kind == "enum":
        return {"enum": rng.sample(["a", "é", "中文", "😀", 'say "hi"', "\n", 5, None, True], 3)}
    if kind == "const":
        return {"const": rng.choice([{"k": [1, "x"]}, "value", 3])}
    if kind == "array":
        low = rng.randint(0, 2)
        items = generated_schema(rng, depth + 1)
        return {"type": "array", "items": items, "minItems": low, "maxItems": low + 2}
    if kind == "anyOf":
        return {"anyOf": [generated_schema(rng, depth + 1) for _ in range(2)]}
    if kind == "object":
        names = rng.sample(["name", "größe", "名前", "a b", "x", "y_1"], rng.randint(0, 4))
        return {
            "type": "object",
            "properties": {name: generated_schema(rng, depth + 1) for name in names},
            "required": rng.sample(names, rng.randint(0, len(names))),
            "additionalProperties": False,
        }
    return {"type": kind}


def test_outputs_of_100_schemas_parse_and_validate(desk: Desk) -> None:
    rng = random.Random(6)
    schemas = {id_: generated_schema(rng) for id_ in range(1, 101)}
    for id_, schema in schemas.items():
        desk.submit(id_, grammar.json_schema(schema), seed=id_)
    desk.wait(*schemas)
    assert not desk.refused
    for id_, schema in schemas.items():
        assert desk.outputs.reasons[id_] == ["stop"]
        jsonschema.validate(msgspec.json.decode(desk.text(id_)), schema)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (grammar.choice(["ja", "nein", "中"]), ("ja", "nein", "中")),
        (grammar.grammar('start: "a" "b" | "c"'), ("ab", "c")),
        (grammar.grammar('root ::= "a" "b" | "c"'), ("ab", "c")),
        (grammar.regex("[xy]{2}"), ("xx", "xy", "yx", "yy")),
        (grammar.json_schema({"enum": [1, "x"]}), ("1", '"x"')),
    ],
)
def test_kinds(desk: Desk, text: str, expected: tuple[str, ...]) -> None:
    desk.submit(1, text, n=4)
    desk.wait(1)
    while len(desk.outputs.reasons[1]) < 4:
        for batch in desk.engine.take_outputs(1.0) or []:
            desk.outputs.take(batch)
    assert desk.outputs.reasons[1] == ["stop"] * 4
    desk.submit(2, text)
    desk.wait(2)
    assert desk.text(2) in expected


def test_plain_requests_beside_are_served(desk: Desk) -> None:
    plain = _core.SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True)
    alone = _core.SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True)
    desk.engine.submit(1, array("i", [5, 6, 7]), alone)
    desk.wait(1)
    desk.submit(2, grammar.json_schema({"type": "string", "minLength": 40, "maxLength": 60}))
    desk.engine.submit(3, array("i", [5, 6, 7]), plain)
    desk.wait(2, 3)
    assert desk.outputs.token_ids[3] == desk.outputs.token_ids[1]
    assert 40 <= len(msgspec.json.decode(desk.text(2))) <= 60


@pytest.mark.parametrize(
    "text",
    [
        grammar.lark("start: missing"),
        grammar.lark(""),
        grammar.regex("("),
        grammar.json_schema({"type": "wrong"}),
        grammar.json_schema({"$ref": "#"}),  # allows nothing
        grammar.json_schema({"$ref": "http://example.com/x"}),
        "no grammar at all",
    ],
)
def test_what_cannot_be_used_is_refused(desk: Desk, text: str) -> None:
    desk.submit(1, text)
    desk.wait(1)
    assert isinstance(desk.refused[1], InvalidRequestError)
    desk.submit(2, grammar.choice(["x"]))  # and the next one is served
    desk.wait(2)
    assert desk.text(2) == "x"


def test_a_grammar_that_grows_too_complex_ends_its_request_only(desk: Desk) -> None:
    desk.submit(1, grammar.regex("(a{1,1000}){1,1000}"), logit_bias={97: 100.0}, max_tokens=1500)
    desk.submit(2, grammar.choice(["hello"]))
    desk.wait(1, 2)
    assert desk.text(2) == "hello"
    assert isinstance(desk.refused[1], InvalidRequestError)
    desk.submit(3, grammar.choice(["hello"]))
    desk.wait(3)


def test_aborted_while_waiting_for_its_grammar(desk: Desk) -> None:
    began, go = threading.Event(), threading.Event()
    compile_ = desk.compiler.compile

    def slow(text: str) -> Any:
        began.set()
        go.wait(10)
        return compile_(text)

    desk.compiler.compile = slow  # type: ignore[method-assign]
    desk.submit(1, grammar.choice(["x"]))
    desk.submit(2, grammar.choice(["y"]))
    assert began.wait(10)
    assert desk.queue.abort(1)
    assert not desk.queue.abort(1)
    go.set()
    desk.wait(2)
    assert 1 not in desk.outputs.reasons
    assert 1 not in desk.refused
    assert not desk.queue.abort(2)  # it is the engine's now


def test_what_is_kept_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.engine.grammars._MAX_COMPILED", 3)
    for i in range(10):
        desk.compiler.compile(grammar.choice([str(i)]))
    assert len(desk.compiler._kept) == 3
    monkeypatch.setattr("octavo.engine.grammars._MAX_COMPILED_TEXT_BYTES", 10_000)
    for i in range(10):
        desk.compiler.compile(grammar.choice([f"{i}" * 2000, f"x{i}" * 1000]))
        assert desk.compiler._kept_bytes == sum(map(len, desk.compiler._kept)) < 10_000
    desk.compiler.compile(grammar.choice(["y" * 9_000, "z" * 9_000]))
    assert len(desk.compiler._kept) == 1, "a large one is kept by itself"
    desk.compiler.compile(grammar.choice(["9"]))
    first = desk.compiler.compile(grammar.choice(["9"]))
    assert desk.compiler.compile(grammar.choice(["9"])) is first


def test_the_queue_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.engine.grammars._MAX_QUEUED", 0)
    with pytest.raises(QueueFullError):
        desk.submit(1, grammar.choice(["x"]))


def test_aborted_ones_count_until_their_turn(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or clients that come and go would fill the memory while one grammar is compiled."""
    monkeypatch.setattr("octavo.engine.grammars._MAX_QUEUED", 2)
    began, go = threading.Event(), threading.Event()
    compile_ = desk.compiler.compile

    def slow(text: str) -> Any:
        began.set()
        go.wait(10)
        return compile_(text)

    desk.compiler.compile = slow  # type: ignore[method-assign]
    desk.submit(1, grammar.choice(["x"]))
    assert began.wait(10)
    assert desk.queue.abort(1)
    for id_ in (2, 3):
        desk.submit(id_, grammar.choice(["y"]))
        assert desk.queue.abort(id_)
    with pytest.raises(QueueFullError):
        desk.submit(4, grammar.choice(["z"]))
    go.set()
    deadline = time.monotonic() + 10
    while desk.queue._queue.qsize() and time.monotonic() < deadline:
        time.sleep(0.01)
    desk.submit(4, grammar.choice(["z"]))
    desk.wait(4)


def test_matchers_are_forgotten(desk: Desk) -> None:
    for id_ in range(1, 20):
        desk.submit(id_, grammar.choice(["abc"]), n=2)
    for id_ in range(1, 20):
        desk.engine.abort(id_)
    desk.wait(*range(1, 20))
    deadline = time.monotonic() + 10
    while desk.masks._requests and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not desk.masks._requests


def test_sequences_that_wait_have_no_matcher(desk: Desk) -> None:
    """One takes up to 100 KB, and thousands may wait."""
    ids = range(1, 61)
    for id_ in ids:
        desk.submit(id_, grammar.regex("[a-z]{60}"), n=8)
    most = 0
    deadline = time.monotonic() + 60
    while len(desk.outputs.reasons) < len(ids):
        assert time.monotonic() < deadline
        for batch in desk.engine.take_outputs(0.1) or []:
            desk.outputs.take(batch)
        most = max(most, sum(len(f._matchers) for f in list(desk.masks._requests.values())))
    assert 0 < most <= 2 * MAX_NUM_SEQS  # those that have just ended are forgotten a moment later


@pytest.mark.parametrize("vocab_size", [200, 258, 512, 1025])
def test_logits_may_be_wider_or_narrower_than_the_tokenizer(
    tmp_path: Path, vocab_size: int
) -> None:
    path = make_tiny_model(tmp_path / "m")
    options = ResolveOptions(cache_dir=tmp_path, revision="", download_dir="", load_format="dummy")
    files = ModelFiles(resolve_local(str(path), options))
    tokenizer = grammar_tokenizer(files.tokenizer(), vocab_size, [1])
    compiled = GrammarCompiler(lambda: tokenizer, vocab_size).compile("start: /[a-z]{1,5}/")
    assert len(compiled.mask) == mask_bytes(vocab_size)
    assert int.from_bytes(compiled.mask, "little").bit_count() == 26
