"""Exceptions: the library's codes, with what failed, the likely cause and the next step."""

from __future__ import annotations


class DistributedError(RuntimeError):
    """Base of all; ``code`` is the library's name of the error, like ``"E_NOTFOUND"``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class InvalidArgument(DistributedError, ValueError):
    """An argument is wrong or over a limit."""


class ContextLengthExceeded(InvalidArgument):
    """The prompt does not fit the context."""


class ModelNotFound(DistributedError, LookupError):
    """There is no such model on this machine."""


class Unsupported(DistributedError):
    """This kind of model, template or option is not built in, or its files are malformed."""


class Busy(DistributedError):
    """The queue is full: try again later."""


class Cancelled(DistributedError):
    """The request was cancelled."""


class DoesNotFit(DistributedError, MemoryError):
    """The model does not fit the memory of the nodes."""


class WorkersLost(DistributedError, ConnectionError):
    """Nobody is left who could compute."""


class Timeout(DistributedError, TimeoutError):
    """A deadline has passed."""


_BY_CODE: dict[str, type[DistributedError]] = {
    "E_INVAL": InvalidArgument,
    "E_TOOBIG": InvalidArgument,
    "E_CONTEXT": ContextLengthExceeded,
    "E_NOTFOUND": ModelNotFound,
    "E_FORMAT": Unsupported,
    "E_UNSUPPORTED": Unsupported,
    "E_BUSY": Busy,
    "E_CANCELED": Cancelled,
    "E_NOMEM": DoesNotFit,
    "E_NOFIT": DoesNotFit,
    "E_PEER": WorkersLost,
    "E_NET": WorkersLost,
    "E_TIMEOUT": Timeout,
}


def error_for(code: str, message: str) -> DistributedError:
    return _BY_CODE.get(code, DistributedError)(code, message)
