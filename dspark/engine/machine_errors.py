"""Errors that are nobody's own: the machine's memory is full, or its GPU has failed."""

import torch

from dspark.errors import CaptureError, is_gpu_failure

CPU_WORDS = ("can't allocate memory", "DefaultCPUAllocator")


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch's CPU allocator has no class for it, so its words tell."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_WORDS)


def is_of_the_machine(error: BaseException) -> bool:
    """Whether the same would meet whatever request runs next, fewer at once perhaps not."""
    return isinstance(error, CaptureError) or is_gpu_failure(error) or is_out_of_memory(error)
