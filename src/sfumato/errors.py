"""The errors sfumato raises. Each message is one line: what was wrong, which value, what to do."""


class SfumatoError(Exception):
    """Root of every error this package raises on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 1


class InvalidRequest(SfumatoError, ValueError):
    """A value the user chose can't work: unknown sampler, impossible size, steps out of range.

    `field` is the name of the setting it is about, where it is one's: programs can say where that was set.
    """

    exit_code = 2

    def __init__(self, message: str = "", *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidConfig(SfumatoError, ValueError):
    """A model's or the user's configuration contradicts itself or isn't supported."""

    exit_code = 2


class ModelNotFound(SfumatoError, FileNotFoundError):
    """There is no model of that name, path or Hub id."""

    exit_code = 2


class CheckpointError(SfumatoError):
    """A weight file is damaged, incomplete, or not of a layout we know."""


class UnsafeCheckpoint(CheckpointError):
    """A weight file asks for something other than tensors: code, an import, an absurd size. Nothing of it was run."""


class DataError(SfumatoError):
    """A data set's file is damaged, incomplete or not as its index says; the message names the file and the sample."""


class HubError(SfumatoError):
    """The Hub could not be reached, or refused: no network, no token, gated repository."""


class MissingExtra(SfumatoError, ImportError):
    """An optional dependency isn't installed; the message names the extra."""

    exit_code = 2


class NumericalError(SfumatoError, ArithmeticError):
    """NaN or infinity appeared; the message names the first layer that produced it."""


class OutOfMemory(SfumatoError, MemoryError):
    """The machine's or the device's memory doesn't suffice for this size."""


class OutputError(SfumatoError, OSError):
    """A result could not be written: folder read-only, disk full, file already there."""


class PeerFailed(SfumatoError):
    """Another process of the same training failed, and this one with it. That one's message says why, so this one's
    is not for the user."""


class PeerGone(PeerFailed):
    """Another process of the same training ended without a word, killed perhaps: this one's message is for the user."""


class UnsafeContent(SfumatoError):
    """The safety policy refused the picture, or couldn't check it and was told to block."""


class Cancelled(SfumatoError):
    """The user or the caller stopped the work."""

    exit_code = 130
