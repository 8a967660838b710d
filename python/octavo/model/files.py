"""All that a model's files say, each file opened once."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.errors import CheckpointError, ConfigError, UnsupportedModelError
from octavo.model.demo import DEMOS
from octavo.model.json_file import read_bounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo import _core
    from octavo.model.chat_template import ChatTemplate
    from octavo.model.config import ModelInfo
    from octavo.model.generation_config import GenerationConfig
    from octavo.model.gguf import GgufModel
    from octavo.model.quantized import QuantizationConfig
    from octavo.model.resolve import ResolvedModel
    from octavo.model.tensor_source import TensorSource
    from octavo.model.tokenizer import Tokenizer

_MAX_TEMPLATE_BYTES = 1 << 20
_JINJA = frozenset("{}\n")  # what no sensible file name holds


class ModelFiles:
    """Reads a model's configuration, tokenizer, chat template and tensors on demand."""

    def __init__(self, model: ResolvedModel) -> None:
        self.model = model

    def info(self) -> ModelInfo:
        """The model's shape.

        Raises:
            CheckpointError: A file is damaged.
            UnsupportedModelError: The model asks for what this version has not.
        """
        if self.model.kind == "gguf":
            from octavo.model.gguf_config import gguf_model_info  # noqa: PLC0415 - of one kind only

            return gguf_model_info(self._gguf)
        from octavo.model.hf_config import hf_model_info  # noqa: PLC0415 - of one kind only

        return hf_model_info(self.model.path)

    def generation_config(self) -> GenerationConfig:
        """End-of-sequence ids and recommended sampling.

        Raises:
            CheckpointError: A file is damaged.
        """
        from octavo.model import generation_config  # noqa: PLC0415 - the engine's process only

        if self.model.kind != "gguf":
            return generation_config.hf_generation_config(self.model.path)
        found = generation_config.gguf_generation_config(self._gguf)
        demo = DEMOS.get(self.model.name)
        if demo is None:
            return found
        return replace(found, temperature=demo.temperature, top_p=demo.top_p)

    def tokenizer(self, override: str = "") -> Tokenizer:
        """The model's tokenizer, or the one at `override`: a directory, tokenizer.json or .gguf.

        Raises:
            ConfigError: `override` leads nowhere.
            CheckpointError: A file is damaged or missing.
            UnsupportedModelError: It is of a kind that is not supported.
        """
        from octavo.model import tokenizer  # noqa: PLC0415 - not where only weights are loaded

        path = Path(override).expanduser() if override else self.model.path
        if not path.exists():
            raise ConfigError(f"--tokenizer: {path}: no such file or directory.")
        if path == self.model.path and self.model.kind == "gguf":
            return tokenizer.gguf_model_tokenizer(self._gguf.metadata)
        if path.suffix == ".gguf":
            from octavo.model.gguf import GgufModel  # noqa: PLC0415 - of one kind only

            return tokenizer.gguf_model_tokenizer(GgufModel(path).metadata)
        return tokenizer.hf_tokenizer(path)

    def chat_template(self, tokenizer: Tokenizer, override: str = "") -> ChatTemplate | None:
        """The model's chat template; None when it has none.

        Args:
            tokenizer: Its special tokens are variables of the template.
            override: A file, or the template itself: see given_template().

        Raises:
            ConfigError: `override` is no file, or no valid template.
            UnsupportedModelError: The model's template is not valid.
        """
        from octavo.model.chat_template import ChatTemplate  # noqa: PLC0415 - imports jinja2

        if override:
            return given_template(override, tokenizer.special_tokens)
        sources = self._templates()
        if not sources:
            return None
        if "default" not in sources:
            raise UnsupportedModelError(
                f"{self.model.path}: chat templates {', '.join(sources)}, none of them the "
                "default: choose one with --chat-template."
            )
        return ChatTemplate(
            sources["default"], tokenizer.special_tokens, tool_source=sources.get("tool_use")
        )

    def tensors(self, *, kept: frozenset[str] = frozenset()) -> TensorSource:
        """The tensors of the checkpoint.

        Args:
            kept: Types that the codes of quantised safetensors may stay in; what fits none of them
                is decoded. GGUF files are read as they are.

        Raises:
            CheckpointError: A file is damaged or missing.
            UnsupportedModelError: It is quantised in a way that is not supported.
        """
        if self.model.kind == "gguf":
            return self._gguf
        from octavo.model.quantized import QuantizedModel  # noqa: PLC0415 - of one kind
        from octavo.model.safetensors_file import SafetensorsModel  # noqa: PLC0415 - of one kind

        files = SafetensorsModel(self.model.path)
        quantization = self._quantization()
        return files if quantization is None else QuantizedModel(files, quantization, kept=kept)

    def dummy_types(
        self, specs: Sequence[_core.WeightSpec], kept: frozenset[str]
    ) -> dict[str, str]:
        """The types that tensors() would give to `specs` that are quantised, for made-up weights.

        Raises:
            CheckpointError: The configuration is damaged.
            UnsupportedModelError: It is quantised in a way that is not supported.
        """
        quantization = None if self.model.kind == "gguf" else self._quantization()
        if quantization is None:
            return {}
        from octavo.model.quantized import dummy_types  # noqa: PLC0415 - of one kind

        return dummy_types(quantization, specs, kept)

    def _quantization(self) -> QuantizationConfig | None:
        from octavo.model.hf_config import read_hf_config  # noqa: PLC0415 - of one kind
        from octavo.model.quantized import read_quantization  # noqa: PLC0415 - of one kind

        given = read_hf_config(self.model.path).quantization_config
        return read_quantization(given) if given else None

    @cached_property
    def _gguf(self) -> GgufModel:
        from octavo.model.gguf import GgufModel  # noqa: PLC0415 - of one kind only

        return GgufModel(self.model.path)

    def _templates(self) -> dict[str, str]:
        """Template sources by name."""
        if self.model.kind == "gguf":
            named = {"default": "", "tool_use": ".tool_use"}
            found = {
                name: self._gguf.metadata.get(f"tokenizer.chat_template{suffix}", str)
                for name, suffix in named.items()
            }
            return {name: source for name, source in found.items() if source}
        return _directory_templates(self.model.path)


def _directory_templates(directory: Path) -> dict[str, str]:
    """From chat_template.jinja, else from tokenizer_config.json."""
    from octavo.model.tokenizer import read_tokenizer_config  # noqa: PLC0415 - see tokenizer()

    main = directory / "chat_template.jinja"
    if main.is_file():
        more = sorted((directory / "additional_chat_templates").glob("*.jinja"))
        return {"default": _read_template(main)} | {
            path.stem: _read_template(path) for path in more
        }
    listed = read_tokenizer_config(directory).chat_template
    if isinstance(listed, str):
        return {"default": listed}
    return {each.get("name", ""): each.get("template", "") for each in listed or []}


def given_template(given: str, special_tokens: dict[str, str]) -> ChatTemplate:
    """The template of --chat-template: a file's, or the text itself if it looks like Jinja.

    Raises:
        ConfigError: It is no file, or no valid template.
    """
    from octavo.model.chat_template import ChatTemplate  # noqa: PLC0415 - imports jinja2

    try:
        source = given if _JINJA & set(given) else _read_template(Path(given).expanduser())
        return ChatTemplate(source, special_tokens)
    except (CheckpointError, UnsupportedModelError) as error:
        raise ConfigError(f"--chat-template: {error}") from None


def _read_template(path: Path) -> str:
    try:
        return read_bounded(path, _MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError:
        raise UnsupportedModelError(f"{path}: not UTF-8 text.") from None
