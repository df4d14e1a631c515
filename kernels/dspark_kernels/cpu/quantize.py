"""Float weights as int8 copies (Q8_0), to be multiplied as stored ones are."""

import torch

from dspark_kernels.cpu.formats import FORMATS
from dspark_kernels.cpu.gguf_blocks import Parts
from dspark_kernels.cpu.rounded import GROUP
from dspark_kernels.cpu.stored_weight import StoredWeight, pack
from dspark_kernels.one_thread import one_thread

LARGEST_CODE = 127


@one_thread()
def quantize_q8_0(weight: torch.Tensor) -> StoredWeight:
    """weight float [N, K], K a multiple of 32: of each group codes of the largest magnitude / 127,
    in half precision. Raises ValueError where that is not finite."""
    groups = weight.float().unflatten(1, (-1, GROUP))
    factors = (groups.abs().amax(-1) / LARGEST_CODE).half()
    if not factors.isfinite().all():
        raise ValueError("a weight is beyond half precision")
    steps = factors.float().unsqueeze(-1)
    codes = torch.where(steps > 0, groups / steps, 0.0).round()
    codes = codes.clamp(-LARGEST_CODE, LARGEST_CODE) + FORMATS["q8_0"].offset
    return pack("q8_0", Parts(codes.to(torch.uint8).flatten(1), factors, None, None, None))
