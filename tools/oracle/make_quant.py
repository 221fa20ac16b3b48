"""One small weight in every format of mlx.core.quantize, with what MLX makes of it.

    python make_quant.py [OUT]      OUT/model.safetensors

Per format NAME (affine2g32 .. affine8g128, mxfp4, mxfp8, nvfp4): NAME.weight, NAME.scales and, when affine, NAME.biases
as in a repository; NAME.want [ROWS, COLUMNS], the values in float32; NAME.y [TOKENS, ROWS] = x NAME^T by MLX. And x.
"""

import argparse
from pathlib import Path

import mlx.core as mx
import numpy as np

from common import GOLDENS

ROWS, COLUMNS, TOKENS = 17, 128, 31  # a second tile, a third panel
DTYPES = {32: mx.bfloat16, 64: mx.float16, 128: mx.float32}
AFFINE = [("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
FORMATS = [*AFFINE, ("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]


def make(out: Path) -> None:
    rng = np.random.RandomState(6)
    x = mx.array(rng.standard_normal((TOKENS, COLUMNS)).astype(np.float32))
    tensors = {"x": x}
    for mode, bits, group in FORMATS:
        name = f"{mode}{bits}g{group}" if mode == "affine" else mode
        size = np.exp2(np.arange(ROWS) % 9 - 6.0)[:, None]  # scales of many powers of two
        values = (rng.standard_normal((ROWS, COLUMNS)) * size).astype(np.float32)
        weight = mx.array(values).astype(DTYPES.get(group, mx.bfloat16) if mode == "affine" else mx.bfloat16)
        how = {"group_size": group, "bits": bits, "mode": mode}
        parts = mx.quantize(weight, **how)
        tensors |= {f"{name}.{suffix}": p for suffix, p in zip(("weight", "scales", "biases"), parts)}
        if mode == "affine":  # so that MLX computes in float32
            parts = (parts[0], *(p.astype(mx.float32) for p in parts[1:]))
        tensors[f"{name}.want"] = mx.dequantize(*parts, **how).astype(mx.float32)
        tensors[f"{name}.y"] = mx.quantized_matmul(x, *parts, transpose=True, **how)
    mx.eval(tensors)
    out.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(out / "model.safetensors"), tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=GOLDENS.parent / "unit" / "quant")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    make(args.out)


if __name__ == "__main__":
    main()
