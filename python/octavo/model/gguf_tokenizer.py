"""A tokenizer from the metadata of a GGUF file.

Two families: "gpt2" is byte-level BPE with explicit merges, "llama" is SentencePiece BPE, whose
merges follow from the scores of the pieces.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, cast

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from octavo.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

    from octavo.model.gguf import GgufMetadata

_SPACE_MARK = "\u2581"  # SentencePiece writes a space as this character

# tokenizer.ggml.token_type. Source: the GGUF format.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

# How text is split before merging, by tokenizer.ggml.pre. The patterns are part of the models:
# they are those of the original tokenizers.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "dbrx": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "tekken": _TEKKEN,
    "gpt-4o": _O200K,
}
_GPT2_SPLIT = frozenset({"", "default", "gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jina-en"})
_GPT2_SPLIT_SINGLE_DIGITS = frozenset(
    {"smollm", "starcoder", "refact", "codeshell", "command-r", "exaone", "minerva-7b"}
)
# A word that is itself in the vocabulary is taken whole, whatever the merges say.
_WHOLE_WORDS = frozenset({"llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "tekken"})
_BEGINS_WITH_BOS = _WHOLE_WORDS
_COMPOSES = frozenset({"qwen2", "deepseek-r1-qwen", "megrez"})


def gguf_tokenizer(metadata: GgufMetadata) -> Tokenizer:
    """Build the tokenizer that a GGUF file describes.

    Raises:
        CheckpointError: A key is missing, has the wrong type, or contradicts another.
        UnsupportedModelError: It is of a kind that is not supported.
    """
    kind = metadata.need("tokenizer.ggml.model", str)
    if kind not in {"gpt2", "llama"}:
        raise UnsupportedModelError(
            f"{metadata.path}: tokenizer model {kind!r} is not supported; supported are gpt2 and "
            "llama. Give another tokenizer with --tokenizer."
        )
    vocabulary = _Vocabulary(metadata)
    tokenizer = _byte_level_bpe(vocabulary) if kind == "gpt2" else _sentencepiece_bpe(vocabulary)
    tokenizer.add_special_tokens(vocabulary.added(_CONTROL, _UNKNOWN, special=True))
    tokenizer.add_tokens(vocabulary.added(_USER_DEFINED, special=False))
    default_bos = kind == "llama" or vocabulary.pre in _BEGINS_WITH_BOS
    vocabulary.set_post_processor(tokenizer, default_bos=default_bos)
    return tokenizer


class _Vocabulary:
    """The arrays of tokenizer.ggml, checked against each other."""

    def __init__(self, metadata: GgufMetadata) -> None:
        self.metadata = metadata
        self.pre = metadata.get("tokenizer.ggml.pre", str) or ""
        self.tokens = metadata.get_list("tokenizer.ggml.tokens", str) or []
        self.ids = dict(zip(self.tokens, range(len(self.tokens)), strict=True))
        self.types = metadata.get_list("tokenizer.ggml.token_type", int) or [1] * len(self.tokens)
        if not self.tokens or len(self.types) != len(self.tokens):
            raise CheckpointError(
                f"{metadata.path}: tokenizer.ggml.tokens has {len(self.tokens)} entries, "
                f"tokenizer.ggml.token_type {len(self.types)}"
            )
        if len(self.ids) != len(self.tokens):
            raise CheckpointError(f"{metadata.path}: tokenizer.ggml.tokens holds a token twice")

    def merges(self) -> list[tuple[str, str]]:
        path = self.metadata.path
        lines = self.metadata.get_list("tokenizer.ggml.merges", str)
        if lines is None:
            raise CheckpointError(f"{path}: metadata key 'tokenizer.ggml.merges' is missing")
        pairs = list(map(tuple, map(str.split, lines, repeat(" "))))
        if set(map(len, pairs)) - {2}:
            raise CheckpointError(f"{path}: tokenizer.ggml.merges has a line that is no pair")
        return cast("list[tuple[str, str]]", pairs)

    def scores(self) -> list[float]:
        scores = self.metadata.get_list("tokenizer.ggml.scores", float) or []
        if len(scores) != len(self.tokens):
            raise CheckpointError(
                f"{self.metadata.path}: tokenizer.ggml.scores has {len(scores)} entries for "
                f"{len(self.tokens)} tokens"
            )
        return scores

    def added(self, *types: int, special: bool) -> list[AddedToken]:
        return [
            AddedToken(self.tokens[id_], special=special, normalized=False)
            for id_, type_ in enumerate(self.types)
            if type_ in types and self.tokens[id_]
        ]

    def special(self, kind: str) -> tuple[int, str] | None:
        """Id and text of tokenizer.ggml.<kind>_token_id."""
        id_ = self.metadata.get(f"tokenizer.ggml.{kind}_token_id", int)
        if id_ is None:
            return None
        if not 0 <= id_ < len(self.tokens):
            raise CheckpointError(
                f"{self.metadata.path}: tokenizer.ggml.{kind}_token_id {id_} is no token"
            )
        return id_, self.tokens[id_]

    def set_post_processor(self, tokenizer: Tokenizer, *, default_bos: bool) -> None:
        """Begin and end texts as add_bos_token and add_eos_token say."""
        template, specials = ["$A"], []
        for kind, default, position in (("bos", default_bos, 0), ("eos", False, 2)):
            wanted = self.metadata.get(f"tokenizer.ggml.add_{kind}_token", bool)
            token = self.special(kind)
            if token is not None and (default if wanted is None else wanted):
                template.insert(position, token[1])
                specials.append((token[1], token[0]))
        if specials:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=template, special_tokens=list(dict.fromkeys(specials))
            )


def _byte_level_bpe(vocabulary: _Vocabulary) -> Tokenizer:
    """Bytes that the vocabulary lacks are left out before merging, as by a tokenizer.json."""
    model = _bpe(vocabulary, vocabulary.merges(), ignore_merges=vocabulary.pre in _WHOLE_WORDS)
    tokenizer = Tokenizer(model)
    if vocabulary.pre in _COMPOSES:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(vocabulary)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(vocabulary: _Vocabulary) -> PreTokenizer:
    pre = vocabulary.pre
    if pre in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, to_bytes])
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre in _GPT2_SPLIT:
        return whole
    if pre in _GPT2_SPLIT_SINGLE_DIGITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    known = sorted({*_SPLITS, *_GPT2_SPLIT, *_GPT2_SPLIT_SINGLE_DIGITS} - {""})
    raise UnsupportedModelError(
        f"{vocabulary.metadata.path}: pre-tokenizer {pre!r} is not supported; supported are "
        f"{', '.join(known)}. Give the original tokenizer with --tokenizer."
    )


def _sentencepiece_bpe(vocabulary: _Vocabulary) -> Tokenizer:
    unknown = vocabulary.special("unknown")
    bytes_known = all(f"<0x{byte:02X}>" in vocabulary.ids for byte in range(256))
    model = _bpe(
        vocabulary,
        _merges_by_score(vocabulary),
        byte_fallback=bytes_known,
        fuse_unk=True,
        unk_token=unknown[1] if unknown else None,
    )
    tokenizer = Tokenizer(model)
    prefix = vocabulary.metadata.get("tokenizer.ggml.add_space_prefix", bool) is not False
    marks = normalizers.Replace(" ", _SPACE_MARK)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE_MARK), marks]) if prefix else marks
    )
    steps = [decoders.Replace(_SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_by_score(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """The merges that SentencePiece implies by joining the pair whose piece has the best score.

    Every way to split a piece into two others is a merge, ranked by the piece's score and then by
    the ids of the parts.
    """
    ids, scores = vocabulary.ids, vocabulary.scores()
    ranked = []
    for piece, id_ in ids.items():
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[id_], left, right))
    ranked.sort()
    tokens = vocabulary.tokens
    return [(tokens[left], tokens[right]) for _, left, right in ranked]


def _bpe(
    vocabulary: _Vocabulary, merges: list[tuple[str, str]], **options: bool | str | None
) -> models.BPE:
    try:
        return models.BPE(vocabulary.ids, merges, **options)
    except Exception as error:  # the library raises the bare class
        raise CheckpointError(f"{vocabulary.metadata.path}: tokenizer: {error}") from None
