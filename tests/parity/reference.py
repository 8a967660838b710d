"""transformers as the oracle: float32, one sequence at a time, nothing of Octavo in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import torch
import transformers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from octavo.outputs import Logprobs, RequestOutput

    Model = transformers.PreTrainedModel

_GGUF_TO_HF = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "embed_tokens",
    "output_norm": "norm",
}


def logprobs_of(model: Model, token_ids: Sequence[int]) -> torch.Tensor:
    """Row i: log-probabilities of the token after position i. [len(token_ids), vocab]."""
    with torch.inference_mode():
        logits = model(torch.tensor([list(token_ids)]), use_cache=False).logits[0]
        return torch.log_softmax(logits.float(), -1)


class Comparison:
    """How far an engine's output is from the model's own log-probabilities.

    Attributes:
        deltas: |difference| of every log-probability that was reported.
        num_not_greedy: Output tokens that are not the reference's most likely ones.
        logprobs: The reference's, of every token of prompt and output but the first.
    """

    def __init__(self, output: RequestOutput, model: Model) -> None:
        tokens = output.prompt_token_ids + output.outputs[0].token_ids
        expected = logprobs_of(model, tokens)
        self.deltas = [
            abs(each.logprob - expected[position, id_].item())
            for position, logprobs in enumerate(reported(output))
            for id_, each in logprobs.items()
        ]
        num_prompt = len(output.prompt_token_ids)
        greedy = expected[num_prompt - 1 : -1].argmax(-1).tolist()
        self.num_not_greedy = sum(a != b for a, b in zip(greedy, tokens[num_prompt:], strict=True))
        self.logprobs = [expected[i, id_].item() for i, id_ in enumerate(tokens[1:])]

    @property
    def max_delta(self) -> float:
        return max(self.deltas)


def reported(output: RequestOutput) -> Iterator[Logprobs]:
    """What an output says of the successor of each position, through prompt and new tokens."""
    assert output.prompt_logprobs is not None
    for each in output.prompt_logprobs[1:]:
        assert each is not None
        yield each
    yield from output.outputs[0].logprobs or []


def llama_from_gguf(path: Path) -> Model:
    """A transformers Llama with the weights of a GGUF file, dequantised by the gguf package."""
    reader = gguf.GGUFReader(path)
    config = _gguf_config(reader)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    weights = dict(_hf_weights(reader, config))
    if "lm_head.weight" not in weights:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    # Buffers that are not in the state were made without storage.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def _gguf_config(reader: gguf.GGUFReader) -> transformers.LlamaConfig:
    def value(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    return transformers.LlamaConfig(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=not any(t.name == "output.weight" for t in reader.tensors),
    )


def _hf_weights(
    reader: gguf.GGUFReader, config: transformers.LlamaConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        *layer, name, kind = tensor.name.split(".")
        if name in heads:
            values = _rotate_half_order(values, heads[name])
        if name == "output":
            yield "lm_head.weight", values
        else:
            place = f"layers.{layer[1]}." if layer else ""
            yield f"model.{place}{_GGUF_TO_HF[name]}.{kind}", values


def _rotate_half_order(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """GGUF Llamas rotate neighbouring rows, transformers rotates halves of a head."""
    head_dim = rows.shape[0] // num_heads
    split = rows.reshape(num_heads, head_dim // 2, 2, -1)
    return split.transpose(1, 2).reshape(rows.shape)
