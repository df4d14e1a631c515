"""The device and number format that "auto" stands for on this machine."""

from dataclasses import dataclass

import torch

from dspark.config import DraftWeights, Dtype, KVFormat, RuntimeConfig
from dspark.errors import InputError
from dspark.plural import counted
from dspark_kernels.backend import cuda_capability

BF16_CAPABILITY = (8, 0)  # the least with bfloat16


@dataclass(frozen=True, slots=True)
class ResolvedRuntime:
    """The resolved value of "auto", with the reason. `dtype` may be the format of a GGUF's
    codes."""

    device: str
    dtype: str
    reason: str
    draft_weights: DraftWeights = "auto"
    kv: KVFormat = "auto"


def resolve_runtime(runtime: RuntimeConfig) -> ResolvedRuntime:
    """Raises InputError for an unavailable device."""
    device, dtype = runtime.device, runtime.dtype
    reason = "as asked"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        reason = "a CUDA device was found" if device == "cuda" else "no CUDA device was found"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is unknown", "Use auto, cpu or cuda.") from error
    if place.type == "cuda":
        _check_cuda(place)
    if dtype == "auto":
        dtype, why = _default_dtype(place)
        reason += why
    return ResolvedRuntime(device, dtype, reason, runtime.draft_weights, runtime.kv)


def _check_cuda(device: torch.device) -> None:
    """Raises InputError for one that is not there."""
    if not torch.cuda.is_available():
        raise InputError(f"device {device} was requested, but no CUDA device was found")
    if (device.index or 0) >= (count := torch.cuda.device_count()):
        raise InputError(
            f"device {device} was requested, but there is only {counted(count, 'CUDA device')}",
            "They are counted from cuda:0.",
        )


def _default_dtype(device: torch.device) -> tuple[Dtype, str]:
    """Also why, where it is not the usual one."""
    if device.type != "cuda":
        return "float32", ""
    if cuda_capability(device) < BF16_CAPABILITY and torch.version.hip is None:
        return "float16", "; it computes in float16, because it has no bfloat16"
    return "bfloat16", ""
