"""Tokenizers of model directories, against transformers on the same files."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from model.checkpoints import byte_level_vocabulary
from octavo.errors import CheckpointError, InvalidRequestError, UnsupportedModelError
from octavo.model.tokenizer import Tokenizer, hf_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "the <|im_start|>thing 12 é<extra> 'll"


def backend(**options: Any) -> tokenizers.Tokenizer:
    vocabulary = byte_level_vocabulary()
    ids = {token: i for i, token in enumerate(vocabulary["tokens"])}
    merges = [tuple(line.split(" ")) for line in vocabulary["merges"]]
    tokenizer = tokenizers.Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    if options.get("template"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    return tokenizer


def write(directory: Path, config: dict[str, Any] | None, **options: Any) -> Path:
    backend(**options).save(str(directory / "tokenizer.json"))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def extra(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False,
            "single_word": False, "special": False, "__type": "AddedToken"} | flags  # fmt: skip


CONFIGS: list[tuple[dict[str, Any], bool]] = [
    ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, False),
    ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, True),
    ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": True}, False),
    ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": False}, True),
    ({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_eos_token": True}, True),
    ({"bos_token": extra("<|im_start|>", special=True), "eos_token": "<|im_end|>",
      "added_tokens_decoder": {"271": extra("<extra>", special=True)}}, False),
    ({"eos_token": "<|im_end|>", "added_tokens_decoder": {"271": extra("<extra>")}}, False),
    ({"eos_token": "<new>"}, False),
]  # fmt: skip


@pytest.mark.parametrize(("config", "template"), CONFIGS)
def test_encodes_as_transformers(tmp_path: Path, config: dict[str, Any], template: bool) -> None:
    transformers = pytest.importorskip("transformers")
    write(tmp_path, {"tokenizer_class": "PreTrainedTokenizerFast", **config}, template=template)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    tokenizer = hf_tokenizer(tmp_path)
    for special in (True, False):
        ids = tokenizer.encode(TEXT, add_special_tokens=special)
        assert ids == reference.encode(TEXT, add_special_tokens=special)
        for skip in (True, False):
            expected = reference.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert tokenizer.decode(ids, skip_special_tokens=skip) == expected
    assert tokenizer.eos_token_id == reference.eos_token_id
    assert tokenizer.bos_token_id == reference.bos_token_id
    assert tokenizer.vocab_size == len(reference)


def test_special_tokens_come_from_either_file(tmp_path: Path) -> None:
    write(tmp_path, {"eos_token": "<|im_end|>"})
    older = {"eos_token": "<|endoftext|>", "bos_token": {"content": "<|im_start|>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(older))
    tokenizer = hf_tokenizer(tmp_path)
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_needs_no_configuration(tmp_path: Path) -> None:
    tokenizer = hf_tokenizer(write(tmp_path, None))
    assert tokenizer.bos_token_id is None
    assert tokenizer.decode(tokenizer.encode(TEXT), skip_special_tokens=False) == TEXT
    assert hf_tokenizer(tmp_path / "tokenizer.json").encode(TEXT) == tokenizer.encode(TEXT)


def test_truncation_and_padding_of_the_file_do_not_count() -> None:
    limited = backend()
    limited.enable_truncation(2)
    limited.enable_padding(length=8)
    assert Tokenizer(limited).encode("a b c d") == Tokenizer(backend()).encode("a b c d")


def test_batches_are_the_same() -> None:
    tokenizer = Tokenizer(backend(template=True))
    texts = ["the", "", "the thing", TEXT]
    for special in (True, False):
        single = [tokenizer.encode(text, add_special_tokens=special) for text in texts]
        assert tokenizer.encode_batch(texts, add_special_tokens=special) == single


def test_ids_and_tokens() -> None:
    tokenizer = Tokenizer(backend())
    assert tokenizer.token_to_id("<|im_end|>") == 2
    assert tokenizer.id_to_token(2) == "<|im_end|>"
    assert tokenizer.id_to_token(10**6) is None
    assert tokenizer.id_to_token(-1) is None
    assert tokenizer.max_token_id == tokenizer.vocab_size - 1


def test_a_lone_surrogate_is_the_caller_s_fault() -> None:
    tokenizer = Tokenizer(backend())
    with pytest.raises(InvalidRequestError):
        tokenizer.encode("a\ud800b")
    with pytest.raises(InvalidRequestError):
        tokenizer.encode_batch(["a", "\udfff"])


def test_threads_may_share_it() -> None:
    tokenizer = Tokenizer(backend())
    texts = [f"the thing {i} é" for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        encoded = list(pool.map(tokenizer.encode, texts))
        decoded = list(pool.map(tokenizer.decode, encoded))
    assert decoded == texts


def test_encoding_releases_the_gil() -> None:
    tokenizer = Tokenizer(backend())
    turns = 0
    is_over = threading.Event()

    def turn() -> None:
        nonlocal turns
        while not is_over.wait(0.0001):  # gives the lock back each time
            turns += 1

    thread = threading.Thread(target=turn)
    thread.start()
    before = turns
    tokenizer.encode("thing " * 20_000)
    during = turns - before
    is_over.set()
    thread.join()
    assert during > 10, "held, the lock would be free right before and after only"


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json"),
        ("tokenizer.json", "\0", r"tokenizer\.json"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": {}}}', "content"),
        ("special_tokens_map.json", "3", r"special_tokens_map\.json"),
    ],
)
def test_names_the_damaged_file(tmp_path: Path, name: str, content: str, cause: str) -> None:
    write(tmp_path, {})
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=cause):
        hf_tokenizer(tmp_path)


def test_names_the_missing_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json; .* --tokenizer"):
        hf_tokenizer(tmp_path)


def write_vocabulary(directory: Path, class_: str) -> Path:
    vocabulary = byte_level_vocabulary()
    ids = {token: i for i, token in enumerate(vocabulary["tokens"])}
    (directory / "vocab.json").write_text(json.dumps(ids))
    lines = ["#version: 0.2", *vocabulary["merges"], ""]
    (directory / "merges.txt").write_text("\n".join(lines))
    config = {"tokenizer_class": class_, "eos_token": "<|endoftext|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def test_a_vocabulary_without_tokenizer_json_goes_through_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tokenizer = hf_tokenizer(write_vocabulary(tmp_path, "GPT2Tokenizer"))
    assert tokenizer.encode("the 12") == Tokenizer(backend()).encode("the 12")
    assert tokenizer.eos_token_id == 0


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_vocabulary(tmp_path, "TheirOwnTokenizer")
    (tmp_path / "own.py").write_text("raise SystemExit('ran')")
    config = {
        "tokenizer_class": "TheirOwnTokenizer",
        "auto_map": {"AutoTokenizer": ["own.TheirOwnTokenizer", None]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="'TheirOwnTokenizer' is not part of"):
        hf_tokenizer(tmp_path)


def test_added_tokens_keep_their_flags(tmp_path: Path) -> None:
    decoder = {"271": extra("<extra>", special=True), "x": extra("<odd>")}
    tokenizer = hf_tokenizer(write(tmp_path, {"added_tokens_decoder": decoder}))
    added = tokenizer.backend.get_added_tokens_decoder()
    assert added[271] == AddedToken("<extra>", special=True, normalized=False)
    assert tokenizer.token_to_id("<odd>") is None
