"""Errors for users: one line that states what happened, one that states what to do."""


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
