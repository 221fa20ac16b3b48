"""MLX Distributed: one language model over the computers you already own.

>>> from mlx_distributed import DistributedMLXInference
>>> with DistributedMLXInference(model="demo", world_size=3) as inference:
...     print(inference.generate("Who are you?", max_tokens=64))
"""

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
