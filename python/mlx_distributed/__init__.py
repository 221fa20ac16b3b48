"""MLX Distributed: one language model over the computers you already own.

>>> from mlx_distributed import DistributedMLXInference
>>> with DistributedMLXInference(model="demo", world_size=3) as inference:
...     print(inference.generate("Who are you?", max_tokens=64))

and, for programs with their own model code, ranks that compute sums together:

>>> from mlx_distributed import Communicator
>>> with Communicator(rank, ["10.0.0.1:7000", "10.0.0.2:7000"], insecure=True) as ranks:
...     ranks.all_reduce(array)
"""

from ._communicator import Communicator
from ._errors import (
    Busy,
    Cancelled,
    ContextLengthExceeded,
    DistributedError,
    DoesNotFit,
    InvalidArgument,
    ModelNotFound,
    Timeout,
    Unsupported,
    WorkersLost,
)
from ._inference import DistributedMLXInference, Result, detect_hardware
from ._native import version

__version__ = version()

__all__ = [
    "Busy",
    "Cancelled",
    "Communicator",
    "ContextLengthExceeded",
    "DistributedError",
    "DistributedMLXInference",
    "DoesNotFit",
    "InvalidArgument",
    "ModelNotFound",
    "Result",
    "Timeout",
    "Unsupported",
    "WorkersLost",
    "detect_hardware",
]
