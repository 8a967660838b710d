"""Offline use: a model in this process, without a server.

with LLM("smollm2") as llm:
    print(llm.generate("The capital of France is")[0].outputs[0].text)
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from octavo import _core
from octavo.config import ServeConfig, resolve_options
from octavo.embeddings import embedding_params, finished_embedding
from octavo.engine.adapters import load_adapters
from octavo.engine.grammars import MaskMaker, grammar_compiler
from octavo.engine.settings import (
    adapter_base,
    engine_config,
    kept_types,
    to_core_sampling,
    weight_types,
)
from octavo.errors import (
    ConfigError,
    EngineError,
    EngineFaultError,
    InvalidRequestError,
    QueueFullError,
    RequestError,
)
from octavo.lora_modules import LoraModule
from octavo.model.config import to_core
from octavo.model.files import ModelFiles
from octavo.model.resolve import resolve
from octavo.model.weights import load_weights
from octavo.outputs import Assembly, CompletionOutput, Logprob, RequestOutput, records
from octavo.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from octavo.engine.adapters import Adapters
    from octavo.model.chat_template import Message
    from octavo.model.generation_config import GenerationConfig

__all__ = ["LLM", "CompletionOutput", "Logprob", "RequestOutput", "SamplingParams"]

Prompt = str | Sequence[int]
Params = SamplingParams | Sequence[SamplingParams]
Names = str | Sequence[str]

_POLL_S = 0.5  # between looks at signals


class LLM:
    """A loaded model. Methods may be called from any thread; requests of one call run together.

    Args:
        model: Hub id, directory, .gguf file, or the demo smollm2.
        options: The settings of `octavo serve` that concern model and engine, by field name:
            max_model_len=4096, dtype="float32", kv_cache_memory_bytes=2**30 …

    Raises:
        OctavoError: The model cannot be found, read, run or held in memory.
    """

    def __init__(self, model: str, **options: Any) -> None:
        config = _config(model, options)
        files = _find(config)
        self.tokenizer = files.tokenizer(config.tokenizer)
        self._template = files.chat_template(self.tokenizer, config.chat_template)
        self._generation = files.generation_config()
        self._engine, self._adapters = _start(config, files, self._generation)
        self._grammars = _Grammars(self._engine, files, config.tokenizer)
        self._num_requests = 0
        self._lock = threading.Lock()

    @property
    def max_model_len(self) -> int:
        """Tokens that prompt and output may have together."""
        return self._engine.max_model_len()

    def default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        given = {name: getattr(self._generation, name) for name in names}
        return SamplingParams(**{name: value for name, value in given.items() if value is not None})

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params | None = None,
        *,
        adapter: Names = "",
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts.

        Args:
            prompts: A text, a list of token ids, or a list of either.
            sampling_params: For all prompts or one for each; default_sampling_params() if None.
            adapter: Name of a loaded adapter, for all prompts or one for each; "" for none.
            progress: Show a progress bar; None shows one on a terminal.

        Returns:
            One result a prompt, in order.

        Raises:
            InvalidRequestError: A prompt or a parameter is not acceptable.
            EngineError: The engine failed.
        """
        listed = _listed(prompts)
        if sampling_params is None:
            sampling_params = self.default_sampling_params()
        params = _for_each(sampling_params, len(listed))
        names = [adapter] * len(listed) if isinstance(adapter, str) else list(adapter)
        if len(names) != len(listed):
            raise InvalidRequestError(f"{len(names)} adapters for {len(listed)} prompts.")
        assemblies = [
            self._assembly(prompt, each, name)
            for prompt, each, name in zip(listed, params, names, strict=True)
        ]
        return self._run(assemblies, progress=progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | None = None,
        *,
        adapter: str = "",
        progress: bool | None = None,
        **template_options: Any,
    ) -> list[RequestOutput]:
        """Answer chats.

        Args:
            messages: One chat, or a list of them: [{"role": "user", "content": "Hello"}, …].
            sampling_params: For all chats or one for each. None takes the model's defaults, with
                room for an answer as long as the context allows.
            adapter: Name of a loaded adapter; "" for none.
            progress: Show a progress bar; None shows one on a terminal.
            template_options: tools, add_generation_prompt, continue_final_message, template_kwargs;
                see ChatTemplate.render.

        Returns:
            One result a chat, in order.

        Raises:
            InvalidRequestError: A chat or a parameter is not acceptable.
            EngineError: The engine failed.
        """
        if self._template is None:
            raise InvalidRequestError("The model has no chat template: set chat_template.")
        texts = [self._template.render(chat, **template_options) for chat in _chats(messages)]
        encoded = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        if sampling_params is None:
            sampling_params = [self._whole_answer(token_ids) for token_ids in encoded]
        params = _for_each(sampling_params, len(texts))
        assemblies = [
            Assembly(self.tokenizer, text, token_ids, each, adapter)
            for text, token_ids, each in zip(texts, encoded, params, strict=True)
        ]
        return self._run(assemblies, progress=progress)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Literal["last", "mean"] = "last",
        normalize: bool = True,
        adapter: str = "",
        progress: bool | None = None,
    ) -> list[list[float]]:
        """The model's last hidden states of prompts, one vector a prompt.

        Args:
            prompts: A text, a list of token ids, or a list of either.
            pooling: The state of the last token, or the mean over all tokens.
            normalize: Scale each vector to length 1.
            adapter: Name of a loaded adapter; "" for none.
            progress: Show a progress bar; None shows one on a terminal.

        Raises:
            InvalidRequestError: A prompt is not acceptable.
            EngineError: The engine failed.
        """
        params = embedding_params(pooling)
        assemblies = [self._assembly(prompt, params, adapter) for prompt in _listed(prompts)]
        self._run(assemblies, progress=progress)
        sizes = (len(each.output.prompt_token_ids) for each in assemblies)
        return [
            finished_embedding(each.pooled, size if pooling == "mean" else 1, is_unit=normalize)
            for each, size in zip(assemblies, sizes, strict=True)
        ]

    def load_adapter(self, name: str, path: str) -> None:
        """Load an adapter (LoRA); needs enable_lora or lora_modules.

        Raises:
            OctavoError: It cannot be read, does not fit the model, or there is no room for it.
        """
        self._adapters.load(LoraModule(name, path))

    def unload_adapter(self, name: str) -> None:
        """Let go of an adapter.

        Raises:
            UnknownModelError: There is none of that name.
        """
        self._adapters.unload(name)

    def stats(self) -> dict[str, float]:
        """Counters and gauges of the engine by name."""
        return self._engine.stats()

    def reset_prefix_cache(self) -> None:
        """Forget what earlier prompts left in the KV cache."""
        self._engine.reset_prefix_cache()

    def close(self) -> None:
        """Stop the engine."""
        self._engine.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _assembly(self, prompt: Prompt, params: SamplingParams, adapter: str) -> Assembly:
        if isinstance(prompt, str):
            token_ids = self.tokenizer.encode(prompt)
            return Assembly(self.tokenizer, prompt, token_ids, params, adapter)
        return Assembly(self.tokenizer, None, list(prompt), params, adapter)

    def _whole_answer(self, token_ids: list[int]) -> SamplingParams:
        left = max(self.max_model_len - len(token_ids), 1)
        return msgspec.structs.replace(self.default_sampling_params(), max_tokens=left)

    def _run(self, assemblies: Sequence[Assembly], *, progress: bool | None) -> list[RequestOutput]:
        with self._lock, _progress_bar(len(assemblies), progress) as advance:
            waiting = deque(assemblies)
            live: dict[int, Assembly] = {}
            try:
                while waiting or live:
                    self._submit_some(waiting, live)
                    for request_id in self._collect(live):
                        del live[request_id]
                        advance()
            finally:
                for request_id in live:
                    self._engine.abort(request_id)
        return [assembly.output for assembly in assemblies]

    def _submit_some(self, waiting: deque[Assembly], live: dict[int, Assembly]) -> None:
        """Submit what the engine's queue has room for."""
        while waiting:
            try:
                request_id = self._submit(waiting[0])
            except QueueFullError:
                if not live:
                    raise
                return
            live[request_id] = waiting.popleft()

    def _submit(self, assembly: Assembly) -> int:
        request_id = self._num_requests
        try:
            token_ids = array("i", assembly.output.prompt_token_ids)
        except (OverflowError, TypeError):
            raise InvalidRequestError("A prompt holds what is no token id.") from None
        sampling = to_core_sampling(assembly.params)
        lora_id = self._adapters.id_of(assembly.adapter)
        mask = self._grammars.begin(request_id, assembly.params)
        self._engine.submit(request_id, token_ids, sampling, token_mask=mask, lora_id=lora_id)
        self._num_requests += 1
        return request_id

    def _collect(self, live: Mapping[int, Assembly]) -> list[int]:
        """Wait for records and take them in; the requests that are now done."""
        batches = self._engine.take_outputs(_POLL_S)
        if failed := self._grammars.refused.keys() & live.keys():
            raise self._grammars.refused.pop(min(failed))
        if batches is None:
            raise EngineError(self._engine.last_error() or "The engine has been shut down.")
        done: list[int] = []
        for batch in batches:
            if failed := batch.errors.keys() & live.keys():
                raise EngineFaultError(self._engine.last_error() or batch.errors[min(failed)])
            for record in records(batch):
                assembly = live.get(record.request_id)
                if assembly is None or assembly.is_done:
                    continue  # the tail of a request that was aborted
                assembly.take(record)
                if assembly.is_done:
                    done.append(record.request_id)
                    if assembly.runs > 0:
                        self._engine.abort(record.request_id)
        return done


class _Grammars:
    """Structured output for the requests of an LLM.

    Attributes:
        refused: Requests that their grammars ended.
    """

    def __init__(self, engine: _core.Engine, files: ModelFiles, tokenizer: str) -> None:
        vocab_size = files.info().vocab_size
        self.refused: dict[int, RequestError] = {}
        self._compiler = grammar_compiler(files, tokenizer, vocab_size)
        self._masks = MaskMaker(engine, vocab_size, self.refused.__setitem__)
        self._is_started = False

    def begin(self, request_id: int, params: SamplingParams) -> bytes | None:
        """The mask of a request's first token; None for one without a grammar.

        Raises:
            InvalidRequestError: The grammar is malformed or too complex.
        """
        if params.grammar is None:
            return None
        compiled = self._compiler.compile(params.grammar)
        if not self._is_started:
            self._masks.start()
            self._is_started = True
        self._masks.add(request_id, params.n, compiled)
        return compiled.mask


def _config(model: str, options: Mapping[str, Any]) -> ServeConfig:
    try:
        return ServeConfig(model=model, **options)
    except TypeError as error:
        raise ConfigError(str(error).replace("ServeConfig.__init__()", "LLM")) from None


def _find(config: ServeConfig) -> ModelFiles:
    options = resolve_options(config)
    return ModelFiles(resolve(config.model, options, lambda _done, _total: None))


def _start(
    config: ServeConfig, files: ModelFiles, generation: GenerationConfig
) -> tuple[_core.Engine, Adapters]:
    info = files.info()
    core = engine_config(config, info, generation)
    base = adapter_base(config, files, core)
    model = to_core(info)
    is_dummy = config.load_format == "dummy"
    tensors = None if is_dummy else files.tensors(kept=kept_types(core))
    engine = _core.Engine(core, model, weight_types(files, tensors, core, model))
    if tensors is None:
        engine.load_dummy_weights(config.seed)
    else:
        load_weights(engine, tensors)
    engine.finish_loading()
    engine.allocate_kv_cache()
    adapters = load_adapters(config, engine, base)
    engine.warm_up()
    engine.self_test()
    engine.start()
    return engine, adapters


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [cast("Sequence[int]", prompts)]
    return list(cast("Sequence[Prompt]", prompts))


def _chats(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
    if messages and isinstance(messages[0], dict):
        return [cast("Sequence[Message]", messages)]
    return list(cast("Sequence[Sequence[Message]]", messages))


def _for_each(params: Params, count: int) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise InvalidRequestError(f"{len(params)} sampling parameters for {count} prompts.")
    return list(params)


@contextmanager
def _progress_bar(total: int, shown: bool | None) -> Iterator[Callable[[], None]]:
    """Gives a function to call for each finished prompt."""
    if not (sys.stderr.isatty() if shown is None else shown):
        yield lambda: None
        return
    from rich.console import Console  # noqa: PLC0415 - only where a bar is shown
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("Prompts", total=total)
        yield lambda: bar.advance(task)
