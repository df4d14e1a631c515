"""The number format of a training's matrix products; weights, sums and moments are float32."""

from collections.abc import Callable
from typing import Literal

import torch

from dspark.config import Precision


def product_precision(asked: Precision, device: str) -> Literal["float32", "bfloat16"]:
    """ "auto" is bfloat16 where the processor has units for it, which the processor says of
    itself: a measurement could differ from run to run, and with it the weights."""
    if asked != "auto":
        return asked
    return "bfloat16" if has_bfloat16_units(device) else "float32"


def has_bfloat16_units(device: str) -> bool:
    """Tensor cores, or AMX that the system lets programs use. With AVX-512's bf16 alone, oneDNN's
    products are slower than those of float32 (docs/log.md)."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    told: Callable[[], dict[str, bool]] = getattr(torch.cpu, "get_capabilities", dict)  # of late
    has_amx = bool(told().get("amx_bf16"))
    return device == "cpu" and has_amx and bool(torch.cpu._init_amx())
