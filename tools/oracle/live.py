"""Random models of every family, live: our logits beside mlx-lm's, on configurations nobody chose.

    python live.py BUILD [--family NAME] [--seeds N] [--first SEED] [--keep DIR]

For each family and seed: a random configuration (sizes, options, RoPE, quantization of each layer), random
weights, mlx-lm in float32, and `mlxd-logits` in float32, position by position and in chunks, over one and more
shards. Fails where logits differ by more than 1e-3 of the largest, or where splits, chunks or kernels change a bit.
"""

import argparse
import contextlib
import io
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load_model, quantize_model, save_config, save_model

from families import FAMILIES

TOLERANCE = 1e-3
SPREAD = 4.0  # standard deviation of the logits
CHOICES = [("affine", b, g) for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128)]
CHOICES += [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]


def random_weights(model: Any, rng: np.random.RandomState) -> None:
    """Linears keep the scale of their input, vectors stay near what the model starts with."""
    out = []
    for name, value in tree_flatten(model.parameters()):
        shape, fan_in = value.shape, value.shape[-1]
        if value.ndim == 1 or name.endswith(("_scale", "layer_scalar")):
            w = np.array(value.astype(mx.float32)) + 0.2 * rng.standard_normal(shape)
        elif "conv1d" in name:
            w = 0.5 * rng.standard_normal(shape)
        elif name.endswith("bias"):
            w = 0.2 * rng.standard_normal(shape)
        else:
            gain = SPREAD if "lm_head" in name or "embed_tokens.weight" in name else 1.4
            w = rng.standard_normal(shape) * gain / np.sqrt(fan_in)
        out.append((name, mx.array(w.astype(np.float32))))
    model.update(tree_unflatten(out))


def quantization(r: random.Random):
    """A predicate for mlx-lm's quantize_model that chooses for each layer."""
    plain, top = r.random() < 0.15, r.choice(CHOICES)
    mixed = r.random() < 0.6

    def choose(path: str, module: Any) -> Any:
        if not hasattr(module, "to_quantized") or plain:
            return False
        mode, bits, group = r.choice(CHOICES) if mixed else top
        if module.weight.shape[-1] % group or (mixed and r.random() < 0.1):
            return False
        if mode != "affine" and "embed" in path:  # mlx gives these rows in bfloat16, and scales them so
            return False
        return {"mode": mode, "bits": bits, "group_size": group}

    return choose, top


def make(family: str, seed: int, folder: Path) -> dict[str, Any]:
    r = random.Random(f"{family}/{seed}")
    config = FAMILIES[family](r)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    random_weights(model, np.random.RandomState(seed))
    dtype = r.choice([mx.bfloat16, mx.float16, mx.float32])
    model.set_dtype(dtype)
    choose, (mode, bits, group) = quantization(r)
    with contextlib.redirect_stdout(io.StringIO()):  # it tells the bits per weight
        model, config = quantize_model(model, config, group, bits, mode=mode, quant_predicate=choose)
    save_model(folder, model, donate_model=True)
    save_config(config, folder / "config.json")
    return config


class Float32Embedding(nn.QuantizedEmbedding):
    """Lookups in the fp modes come out as bfloat16, whatever set_dtype said, and Gemma then scales them in it."""

    def __call__(self, x: mx.array) -> mx.array:
        return super().__call__(x).astype(mx.float32)


def mlx_logits(folder: Path, prompt: list[int]) -> np.ndarray:
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    for module in model.modules():
        if type(module) is nn.QuantizedEmbedding:
            module.__class__ = Float32Embedding
    cache = make_prompt_cache(model)
    rows = [np.array(model(mx.array([[t]]), cache=cache)[0]) for t in prompt]
    return np.concatenate(rows)


def our_logits(build: Path, folder: Path, prompt: list[int], chunk: int, parts: int, act: str = "f32",
               kernels: str = "best") -> np.ndarray:
    run = subprocess.run([build / "tools/oracle/mlxd-logits", folder, act, kernels, str(chunk), str(parts)],
                         input=" ".join(map(str, prompt)).encode(), capture_output=True)
    if run.returncode:
        raise RuntimeError(run.stderr.decode().strip() or f"mlxd-logits died: {run.returncode}")
    return np.frombuffer(run.stdout, "<f4").reshape(-(-len(prompt) // chunk), -1)


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config", config)


def check(family: str, seed: int, build: Path, folder: Path) -> str:
    """"" when all is well, else what is wrong."""
    config = make(family, seed, folder)
    r = random.Random(seed)
    vocab = text_of(config)["vocab_size"]
    prompt = [r.randrange(min(vocab, 200)) for _ in range(r.choice([7, 40, 75]))]
    want = mlx_logits(folder, prompt)
    parts, chunk = r.randint(2, 3), r.choice([3, 16, 64])
    got = our_logits(build, folder, prompt, 1, 1)
    if got.shape != want.shape:
        return f"shape {got.shape}, mlx-lm has {want.shape}"
    worst = np.abs(got - want).max() / np.abs(want).max()
    if not worst < TOLERANCE:
        where = np.abs(got - want).max(axis=1).argmax()
        return f"differs by {worst:.1e} of the largest logit, most at position {where}"
    ends = [min(i + chunk, len(prompt)) - 1 for i in range(0, len(prompt), chunk)]
    for act in ("f32", "8"):
        base = our_logits(build, folder, prompt, 1, 1, act)
        for name, other in {
            f"chunks of {chunk}": our_logits(build, folder, prompt, chunk, 1, act),
            f"{parts} shards": our_logits(build, folder, prompt, chunk, parts, act),
            "scalar": our_logits(build, folder, prompt, chunk, 1, act, "scalar"),
        }.items():
            if base[ends].tobytes() != other.tobytes():
                return f"{name} changed bits ({act})"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("--family", default="", help="families whose names match this expression")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="models that fail are left here")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    passed = failed = 0
    for family in FAMILIES:
        if not re.search(args.family, family):
            continue
        for seed in range(args.first, args.first + args.seeds):
            with tempfile.TemporaryDirectory() as tmp:
                folder = Path(tmp) / f"{family}-{seed}"
                if args.keep:
                    folder = args.keep / f"{family}-{seed}"
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    wrong = check(family, seed, args.build, folder)
                except Exception as e:  # a model that either side refuses is a finding, not the end
                    wrong = f"{type(e).__name__}: {e}"
                passed, failed = passed + (not wrong), failed + bool(wrong)
                print(f"{'ok' if not wrong else 'FAILED'} {family} {seed} {wrong}", flush=True)
                if args.keep and not wrong:
                    for file in folder.iterdir():
                        file.unlink()
                    folder.rmdir()
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
