"""What tests of small models ask for, and how they look at the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo import SamplingParams
from parity.reference import Comparison

if TYPE_CHECKING:
    import transformers

    from octavo.outputs import RequestOutput

GREEDY = SamplingParams(
    temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=5, prompt_logprobs=5
)
DECODE = msgspec.structs.replace(GREEDY, prompt_logprobs=None)


def assert_equal(outputs: list[RequestOutput], model: transformers.PreTrainedModel) -> None:
    comparisons = [Comparison(output, model) for output in outputs]
    assert max(each.max_delta for each in comparisons) <= 1e-4
    assert sum(each.num_not_greedy for each in comparisons) == 0


def decoded(outputs: list[RequestOutput]) -> list[Any]:
    return [(each.outputs[0].token_ids, each.outputs[0].logprobs) for each in outputs]
