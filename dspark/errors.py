"""Every failure that a user can meet: one line of what happened, one line of what to do."""


class DSparkError(Exception):
    """Root of the tree. `message` says what happened, `hint` what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InputError(DSparkError):
    """The caller asked for something that cannot be: an empty prompt, an impossible option."""


class UnknownNameError(DSparkError):
    """A pair, model or file that nobody knows by that name."""


class CheckpointError(DSparkError):
    """A file that is truncated, of another format, or whose tensors are not the expected ones."""


class PairMismatchError(DSparkError):
    """A head that does not belong to the target."""


class DownloadError(DSparkError):
    """The network is missing, or what came over it is not what was asked for."""


class NetworkSetupError(DSparkError):
    """A proxy, a certificate or a key of the environment with which no connection can be made."""


class ServerError(DSparkError):
    """A server that is not there, refuses, or breaks off."""


class StorageError(DSparkError):
    """The disk is full or a folder cannot be written."""


class MemoryFullError(DSparkError):
    """The memory of the machine or of its GPU does not hold what was asked for."""
