"""`octavo serve --check`: every check of a start, and the memory plan, without loading weights."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from octavo import _core
from octavo.engine.settings import adapter_base, engine_config, kept_types, weight_types
from octavo.model.config import to_core
from octavo.model.files import ModelFiles
from octavo.model.resolve import RemoteModel
from octavo.server.launch import check_address
from octavo.server.preflight import find_model, preflight

if TYPE_CHECKING:
    from octavo.config import ServeConfig

_NAME_WIDTH = 12


def check(config: ServeConfig) -> int:
    """Check and print what a start would take; returns 0.

    Raises:
        OctavoError: As the start would.
    """
    preflight(config)
    check_address(config)
    found = find_model(config)
    if isinstance(found, RemoteModel):
        _say("Model", f"{config.model} is not on this machine: octavo pull {config.model}")
        return 0
    _check_files(config, ModelFiles(found))
    _say("Address", config.uds or f"{config.host} port {config.port} is free")
    return 0


def _check_files(config: ServeConfig, files: ModelFiles) -> None:
    info = files.info()
    tokenizer = files.tokenizer(config.tokenizer)
    template = files.chat_template(tokenizer, config.chat_template)
    dummy = config.load_format == "dummy"
    core = engine_config(config, info, files.generation_config())
    adapter_base(config, files, core)
    model = to_core(info)
    tensors = None if dummy else files.tensors(kept=kept_types(core))
    plan = _core.plan_memory(core, model, weight_types(files, tensors, core, model))
    tokens = plan["num_blocks"] * config.block_size
    longest = plan["max_model_len"]
    _say("Model", f"{config.model} ({info.architecture}), {files.model.path}")
    chat = "with" if template else "without"
    _say("Tokenizer", f"{tokenizer.vocab_size:,} tokens, {chat} a chat template")
    if config.has_loras:
        names = ", ".join(each.name for each in config.adapters) or "none yet"
        _say("Adapters", f"{names}; room for {core.max_loras} of rank {core.max_lora_rank}")
    _say("Device", f"{core.device}, weights that are not quantised in {core.weight_dtype}")
    _say("Weights", _size(plan["weights"]))
    _say("Workspace", _size(plan["workspace"]))
    _say(
        "KV cache",
        f"{_size(plan['kv_cache'])}: {plan['num_blocks']:,} blocks, {tokens:,} tokens, "
        f"{tokens / longest:.1f} sequences of {longest:,} tokens",
    )
    total = plan["weights"] + plan["workspace"] + plan["kv_cache"]
    _say("Together", f"{_size(total)} of {_size(plan['available'])} available")


def _say(name: str, text: str) -> None:
    sys.stdout.write(f"{name:<{_NAME_WIDTH}}{text}\n")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
