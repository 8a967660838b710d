from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer, models

from model.checkpoints import GgufBuilder, byte_level_vocabulary, write_model
from model.templates import TEMPLATES
from octavo.errors import CheckpointError, ConfigError, UnsupportedModelError
from octavo.model.files import ModelFiles
from octavo.model.resolve import inspect

if TYPE_CHECKING:
    from pathlib import Path

CHAT = [{"role": "user", "content": "Hi"}]


def write_tokenizer(directory: Path, **config: object) -> None:
    vocabulary = byte_level_vocabulary()
    ids = {token: i for i, token in enumerate(vocabulary["tokens"])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    config |= {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = write_model(tmp_path / "m")
    write_tokenizer(path)
    return path


def open_files(path: Path) -> ModelFiles:
    return ModelFiles(inspect("m", path))


def render(files: ModelFiles, override: str = "", tools: list[object] | None = None) -> str | None:
    template = files.chat_template(files.tokenizer(), override)
    return None if template is None else template.render(CHAT, tools=tools)


def test_a_directory(directory: Path) -> None:
    files = open_files(directory)
    assert files.info().hidden_size == 64
    assert files.generation_config().eos_token_ids == (2,)
    assert files.tokenizer().eos_token_id == 2
    assert files.tensors().tensors["model.norm.weight"].shape == (64,)
    assert render(files) is None


def test_a_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("octavo._core")
    builder = GgufBuilder(tmp_path / "m.gguf").add_llama().add_byte_level_tokenizer()
    builder.writer.add_chat_template(TEMPLATES["chatml"])
    files = open_files(builder.write())
    assert files.info().rope.interleaved
    assert files.generation_config().eos_token_ids == (2,)
    assert files.tokenizer().bos_token_id == 1
    assert "model.norm.weight" in files.tensors().tensors
    assert render(files) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_demo_is_sampled_as_its_authors_recommend(tmp_path: Path) -> None:
    pytest.importorskip("octavo._core")
    file = GgufBuilder(tmp_path / "m.gguf").add_llama().add_byte_level_tokenizer().write()
    found = ModelFiles(inspect("smollm2", file)).generation_config()
    assert (found.temperature, found.top_p) == (0.2, 0.9)
    other = open_files(file).generation_config()
    assert (other.temperature, other.top_p) == (None, None)
    assert found.eos_token_ids == other.eos_token_ids


def test_where_templates_come_from(directory: Path) -> None:
    write_tokenizer(directory, chat_template="from config {{ bos_token }}")
    assert render(open_files(directory)) == "from config <|im_start|>"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    write_tokenizer(directory, chat_template=named)
    assert render(open_files(directory)) == "plain"
    assert render(open_files(directory), tools=[{}]) == "tools"
    (directory / "chat_template.jinja").write_text("from jinja")
    assert render(open_files(directory)) == "from jinja"
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "tool_use.jinja").write_text("more")
    assert render(open_files(directory), tools=[{}]) == "more"
    own = directory / "own.jinja"
    own.write_text("own")
    assert render(open_files(directory), str(own)) == "own"
    assert render(open_files(directory), "{{ 'inline' }}") == "inline"


def test_templates_that_cannot_be_had(directory: Path) -> None:
    with pytest.raises(ConfigError, match=r"--chat-template: absent\.jinja: No such file"):
        render(open_files(directory), "absent.jinja")
    with pytest.raises(ConfigError, match="--chat-template: The chat template is not valid"):
        render(open_files(directory), "{% if %}")
    with pytest.raises(ConfigError, match=r"--chat-template: .*: Is a directory"):
        render(open_files(directory), str(directory))
    write_tokenizer(directory, chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(UnsupportedModelError, match="chat templates rag, none of them the default"):
        render(open_files(directory))
    (directory / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(UnsupportedModelError, match="not UTF-8"):
        render(open_files(directory))
    (directory / "chat_template.jinja").write_bytes(b"x" * (2 << 20))
    with pytest.raises(CheckpointError, match="larger than 1 MiB"):
        render(open_files(directory))


def test_another_tokenizer(tmp_path: Path, directory: Path) -> None:
    pytest.importorskip("octavo._core")
    builder = GgufBuilder(tmp_path / "t.gguf").add_byte_level_tokenizer(add_bos_token=True)
    path = builder.write()
    files = open_files(directory)
    assert files.tokenizer(str(path)).encode("a")[0] == 1
    assert files.tokenizer(str(directory)).encode("a") == files.tokenizer().encode("a")
    json_file = str(directory / "tokenizer.json")
    assert files.tokenizer(json_file).encode("a") == files.tokenizer().encode("a")
    with pytest.raises(ConfigError, match=r"--tokenizer: .*no such file"):
        files.tokenizer(str(tmp_path / "absent"))
