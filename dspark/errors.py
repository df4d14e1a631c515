"""Errors for users: one line that states what happened, one that states what to do."""

GPU_WORDS = (
    *("CUDA error", "Triton Error [CUDA]", "CUDNN_STATUS", "CUBLAS_STATUS", "HIP error"),
    "out of resource:",  # a kernel of Triton's asks for more than this card has
)
MOST_CHARACTERS = 200  # of one line that others wrote


class DSparkError(Exception):
    """Root of the hierarchy. `message` states what happened, `hint` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(DSparkError):
    """An invalid request: an empty prompt, an impossible option."""


class UnknownNameError(DSparkError):
    """An unknown name of a pair, model or file."""


class CheckpointError(DSparkError):
    """A file that is truncated, in another format, or has unexpected tensors."""


class PairMismatchError(DSparkError):
    """A head that does not belong to the target."""


class DownloadError(DSparkError):
    """The network is unavailable, or a download is not the requested file."""


class NetworkSetupError(DSparkError):
    """A proxy, certificate or key in the environment that prevents any connection."""


class ServerError(DSparkError):
    """A server that is unreachable, refuses, or breaks off."""


class StorageError(DSparkError):
    """The disk is full or a folder cannot be written."""


class MemoryFullError(DSparkError):
    """The request does not fit in the memory of the machine or its GPU."""


class BrokenLogitsError(DSparkError):
    """Logits from which no token can be drawn."""

    def __init__(self) -> None:
        super().__init__(
            "the model's logits hold NaN or infinity: there is no next token",
            "In float16 numbers may overflow: try --dtype bfloat16 or float32. "
            "If it stays, the weights are damaged: fetch them again.",
        )


class BrokenGrammarError(DSparkError):
    """A grammar that cannot follow an answer any further."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the JSON schema became too complex for this answer ({reason})",
            "Use a simpler schema.",
        )


class CaptureError(DSparkError):
    """A round could not be captured as a CUDA graph; nor can any other of this process."""


def reason_of(error: BaseException) -> str:
    """Why, in one line: PyTorch says it in the first of its lines, Triton and compilers in the
    last."""
    lines = [line.strip()[:MOST_CHARACTERS] for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) == 1 or any(words in lines[0] for words in GPU_WORDS):
        return lines[0]
    return f"{lines[0]} … {lines[-1]}"


def is_gpu_failure(error: BaseException) -> bool:
    """Whether CUDA or Triton raised it. They have no class in common, so their words tell."""
    if type(error).__module__.partition(".")[0] == "triton":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in GPU_WORDS)


def gpu_failure(error: BaseException) -> DSparkError | None:
    """The same for users; None for an error that the GPU did not cause."""
    if not is_gpu_failure(error):
        return None
    return DSparkError(
        f"the GPU failed ({reason_of(error)})",
        "Start dspark again: a process cannot use a GPU after such an error. "
        "DSPARK_KERNELS=torch runs without our kernels.",
    )
