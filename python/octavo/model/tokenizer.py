"""Text to token ids and back.

Special tokens written in a text are recognised, in a chat's user content as in a prompt: this is
what users of the same models elsewhere get, and what raw prompts need. Who serves untrusted text to
a model whose special tokens carry authority removes them before.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
import tokenizers

from octavo.errors import CheckpointError, InvalidRequestError, UnsupportedModelError
from octavo.model.detokenizer import TokenBytes
from octavo.model.json_file import read_bounded, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from octavo.model.gguf import GgufMetadata

_MAX_TOKENIZER_BYTES = 256 << 20
_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_VOCABULARIES = ("tokenizer.model", "vocab.json", "vocab.txt")


class Tokenizer:
    """A model's tokenizer. Thread-safe; encoding and decoding release the GIL.

    Attributes:
        backend: The library's tokenizer.
        token_bytes: What each token id stands for, for detokenizers and log-probabilities.
        special_tokens: Text of special tokens by role (bos_token, eos_token, …), as chat templates
            name them.
        bos_token_id: Id of bos_token, None where there is none.
        eos_token_id: Id of eos_token, None where there is none.
        vocab_size: Number of tokens, added ones included.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.token_bytes = TokenBytes(backend)
        self.special_tokens = dict(special_tokens or {})
        self.bos_token_id = self._id_of("bos_token")
        self.eos_token_id = self._id_of("eos_token")
        self.vocab_size: int = backend.get_vocab_size()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text. Other threads run meanwhile.

        Args:
            text: Any text; special tokens in it are recognised.
            add_special_tokens: Whether to begin (and, for some models, end) it as the model's
                texts do. Not for rendered chats: a template writes its own.

        Raises:
            InvalidRequestError: The text holds a lone surrogate.
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """The token ids of several texts, computed on several cores.

        Raises:
            InvalidRequestError: A text holds a lone surrogate.
        """
        try:  # the backend's encode(), for one text, would hold the interpreter lock
            encodings = self.backend.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
        except (UnicodeEncodeError, TypeError):
            raise InvalidRequestError("The text is not valid Unicode.") from None
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids without a token stand for nothing."""
        return self.token_bytes.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary writes it, None for an id without one."""
        return self.backend.id_to_token(token_id) if token_id >= 0 else None

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it."""
        return self.backend.token_to_id(token)

    @cached_property
    def max_token_id(self) -> int:
        """The largest id that stands for a token; takes a tenth of a second the first time."""
        return max(self.backend.get_vocab().values(), default=-1)

    def _id_of(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.backend.token_to_id(token)


class _AddedToken(msgspec.Struct):
    content: str
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    single_word: bool = False
    special: bool = False


class TokenizerConfig(msgspec.Struct):
    """The fields of tokenizer_config.json that Octavo reads."""

    added_tokens_decoder: dict[str, _AddedToken] = {}
    tokenizer_class: str = "LlamaTokenizer"
    chat_template: str | list[dict[str, str]] | None = None
    bos_token: Any = None
    eos_token: Any = None
    unk_token: Any = None
    sep_token: Any = None
    pad_token: Any = None
    cls_token: Any = None
    mask_token: Any = None


def read_tokenizer_config(directory: Path) -> TokenizerConfig:
    """tokenizer_config.json; its defaults where there is none.

    Raises:
        CheckpointError: It is no JSON, or a field has the wrong type.
    """
    path = directory / "tokenizer_config.json"
    return read_json(path, TokenizerConfig) if path.is_file() else TokenizerConfig()


def hf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model directory, or of a tokenizer.json.

    Raises:
        CheckpointError: There is none, or a file is damaged.
        UnsupportedModelError: It exists only as code, and transformers cannot build it.
    """
    directory = path if path.is_dir() else path.parent
    file = path / "tokenizer.json" if path.is_dir() else path
    config = read_tokenizer_config(directory)
    special_tokens = _special_tokens(directory, config)
    if not file.is_file():
        return Tokenizer(_from_transformers(directory, config), special_tokens)
    backend = _from_json(file)
    _add_tokens(backend, config, special_tokens)
    return Tokenizer(backend, special_tokens)


def gguf_model_tokenizer(metadata: GgufMetadata) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file.

    Raises:
        CheckpointError: A key is missing, has the wrong type, or contradicts another.
        UnsupportedModelError: It is of a kind that is not supported.
    """
    from octavo.model.gguf_tokenizer import gguf_tokenizer  # noqa: PLC0415 - only for GGUF files

    backend = gguf_tokenizer(metadata)
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}
    special_tokens = {}
    for role, key in keys.items():
        id_ = metadata.get(f"tokenizer.ggml.{key}_token_id", int)
        token = None if id_ is None or id_ < 0 else backend.id_to_token(id_)
        if token is not None:
            special_tokens[f"{role}_token"] = token
    return Tokenizer(backend, special_tokens)


def _from_json(file: Path) -> tokenizers.Tokenizer:
    data = read_bounded(file, _MAX_TOKENIZER_BYTES)
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises the bare class
        raise CheckpointError(f"{file}: {error}") from None


def _special_tokens(directory: Path, config: TokenizerConfig) -> dict[str, str]:
    """Text by role; special_tokens_map.json fills what tokenizer_config.json leaves open."""
    path = directory / "special_tokens_map.json"
    older = read_json(path, dict[str, Any]) if path.is_file() else {}
    texts = {role: _text(getattr(config, role)) or _text(older.get(role)) for role in _ROLES}
    return {role: text for role, text in texts.items() if text}


def _text(token: object) -> str | None:
    """The text of a special token, which is written plainly or as an object."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _add_tokens(
    backend: tokenizers.Tokenizer, config: TokenizerConfig, special_tokens: Mapping[str, str]
) -> None:
    """Tokens that only tokenizer_config.json lists come after those of tokenizer.json."""
    listed = sorted(
        ((int(id_), each) for id_, each in config.added_tokens_decoder.items() if id_.isdecimal()),
        key=lambda pair: pair[0],
    )
    new = [
        tokenizers.AddedToken(
            each.content,
            lstrip=each.lstrip,
            rstrip=each.rstrip,
            normalized=each.normalized,
            single_word=each.single_word,
            special=each.special or each.content in special_tokens.values(),
        )
        for _, each in listed
    ]
    new += [tokenizers.AddedToken(text, special=True) for text in special_tokens.values()]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in new if token.content not in known])


def _from_transformers(directory: Path, config: TokenizerConfig) -> tokenizers.Tokenizer:
    """For tokenizers without a tokenizer.json; takes seconds to import.

    The class is one of the library's own: code that comes with a model is never run.
    """
    if not any((directory / name).is_file() for name in _VOCABULARIES):
        raise CheckpointError(
            f"{directory}: no tokenizer.json; give the tokenizer's directory with --tokenizer."
        )
    try:
        converted = _transformers_class(config.tokenizer_class).from_pretrained(str(directory))
    except ImportError as error:
        raise UnsupportedModelError(
            f"{directory}: there is no tokenizer.json, and converting the tokenizer needs packages "
            f"that are not installed ({error}): pip install transformers sentencepiece tiktoken"
        ) from None
    except Exception as error:  # whatever the conversion of foreign files raises
        raise UnsupportedModelError(
            f"{directory}: there is no tokenizer.json, and the tokenizer cannot be converted: "
            f"{error}"
        ) from None
    backend = getattr(converted, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise UnsupportedModelError(
            f"{directory}: tokenizer {config.tokenizer_class!r} exists only as Python code."
        )
    return backend


def _transformers_class(name: str) -> Any:
    import transformers  # noqa: PLC0415 - optional, and slow to import

    class_ = getattr(transformers, name, None)
    if not isinstance(class_, type):
        raise UnsupportedModelError(f"{name!r} is not part of transformers")
    return class_
