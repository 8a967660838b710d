"""What an adapter comes to when it is merged into its base model's weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import transformers


def merged(
    model: transformers.PreTrainedModel, tensors: Mapping[str, np.ndarray], alpha: float
) -> transformers.PreTrainedModel:
    """The model with W + alpha / r * B A in place of W."""
    result = copy.deepcopy(model)
    weights = dict(result.named_parameters())
    with torch.no_grad():
        for name, a in tensors.items():
            if ".lora_A." not in name:
                continue
            b = torch.from_numpy(tensors[name.replace("lora_A", "lora_B")])
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weights[f"{module}.weight"] += alpha / len(a) * (b @ torch.from_numpy(a))
    return result
