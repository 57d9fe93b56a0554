"""Mixed precision: forward passes in bfloat16, weights, losses and spectra in float32."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def compute_in_bf16(network: nn.Module) -> None:
    """Let a network's forward pass compute in bfloat16 what ``torch.autocast`` does, and return float32; in place.

    Backward passes follow the types of the forward pass. Gradients are not scaled: bfloat16 has float32's exponents.
    """
    network.forward = MethodType(_mixed_forward, network)


def _mixed_forward(network: Any, inputs: Tensor, *labels: Tensor) -> Tensor:
    with torch.autocast(inputs.device.type, dtype=torch.bfloat16):
        outputs: Tensor = type(network).forward(network, inputs, *labels)
    return outputs.float()
