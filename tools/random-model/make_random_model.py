#!/usr/bin/env python3
"""Write a random-weight qwen3 repository of a real model's shape, in MLX's format. Needs numpy only.

It says nothing sensible; it costs the same memory, bandwidth and arithmetic as the real model.

    python make_random_model.py --shape qwen3-0.6b --out models/random-0.6b
    python make_random_model.py --hidden 512 --layers 4 --heads 8 --kv-heads 2 --intermediate 1536 --vocab 4096 --out DIR
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Iterator

import numpy as np

SHARD_BYTES = 5 << 30
BLOCK_BYTES = 64 << 20  # the most that is in memory at once
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
CHAT_TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
                 "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool


SHAPES = {
    "qwen3-0.6b": Shape(1024, 28, 16, 8, 128, 3072, 151936, True),
    "qwen3-1.7b": Shape(2048, 28, 16, 8, 128, 6144, 151936, True),
    "qwen3-4b": Shape(2560, 36, 32, 8, 128, 9728, 151936, True),
}


@dataclass(frozen=True)
class Quant:
    mode: str  # affine, mxfp4, mxfp8, nvfp4
    bits: int
    group: int


MICROSCALING = {"mxfp4": Quant("mxfp4", 4, 32), "mxfp8": Quant("mxfp8", 8, 32), "nvfp4": Quant("nvfp4", 4, 16)}
SIZES = {"BF16": 2, "U32": 4, "U8": 1}


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str  # BF16, U32 or U8
    shape: tuple[int, ...]
    role: str  # words, scales, biases, norm
    spread: float = 1.0  # standard deviation of the weights that the words stand for

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape)) * SIZES[self.dtype]


def list_tensors(s: Shape, q: Quant) -> Iterator[Tensor]:
    group, affine = q.group, q.mode == "affine"

    def linear(path: str, n_out: int, n_in: int, gain: float = 1.0) -> Iterator[Tensor]:
        if n_in % group:
            raise SystemExit(f"{path}: input size {n_in} is not a multiple of the group size {group}")
        spread = gain / n_in ** 0.5
        yield Tensor(f"{path}.weight", "U32", (n_out, n_in * q.bits // 32), "words")
        yield Tensor(f"{path}.scales", "BF16" if affine else "U8", (n_out, n_in // group), "scales", spread)
        if affine:
            yield Tensor(f"{path}.biases", "BF16", (n_out, n_in // group), "biases", spread)

    def norm(path: str, size: int) -> Tensor:
        return Tensor(f"{path}.weight", "BF16", (size,), "norm")

    width, kv_width = s.heads * s.head_dim, s.kv_heads * s.head_dim
    calm = (2 * s.layers) ** -0.5  # keeps the residual stream near one through all layers
    yield from linear("model.embed_tokens", s.vocab, s.hidden, 4.0)
    for i in range(s.layers):
        p = f"model.layers.{i}"
        yield norm(f"{p}.input_layernorm", s.hidden)
        yield from linear(f"{p}.self_attn.q_proj", width, s.hidden)
        yield from linear(f"{p}.self_attn.k_proj", kv_width, s.hidden)
        yield from linear(f"{p}.self_attn.v_proj", kv_width, s.hidden)
        yield from linear(f"{p}.self_attn.o_proj", s.hidden, width, calm)
        yield norm(f"{p}.self_attn.q_norm", s.head_dim)
        yield norm(f"{p}.self_attn.k_norm", s.head_dim)
        yield norm(f"{p}.post_attention_layernorm", s.hidden)
        yield from linear(f"{p}.mlp.gate_proj", s.intermediate, s.hidden)
        yield from linear(f"{p}.mlp.up_proj", s.intermediate, s.hidden)
        yield from linear(f"{p}.mlp.down_proj", s.hidden, s.intermediate, calm)
    yield norm("model.norm", s.hidden)
    if not s.tied:
        yield from linear("lm_head", s.vocab, s.hidden, 4.0)


def bfloat16(x: np.ndarray) -> np.ndarray:
    return ((x.astype("<f4").view("<u4") + 0x8000) >> 16).astype("<u2")


def e4m3(codes: np.ndarray) -> np.ndarray:
    exponent, fraction = codes >> 3 & 15, codes & 7
    size = np.where(exponent, np.ldexp(8.0 + fraction, exponent - 10), np.ldexp(1.0 * fraction, -9))
    return np.where(codes & 128, -size, size)


def byte_scales(t: Tensor, mode: str, rng: np.random.Generator) -> np.ndarray:
    """Bytes that give any random elements about t's spread."""
    every = e4m3(np.arange(127)) if mode == "mxfp8" else np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    scale = t.spread / np.sqrt(np.mean(every ** 2)) * (0.5 + rng.random(t.shape, dtype=np.float32))
    if mode == "nvfp4":  # the positive codes ascend
        return np.searchsorted(e4m3(np.arange(128)), scale).clip(1, 126).astype(np.uint8)
    return (127 + np.round(np.log2(scale))).astype(np.uint8)


def write_data(f: BinaryIO, t: Tensor, q: Quant, rng: np.random.Generator, last_scales: np.ndarray) -> np.ndarray:
    """Writes t; returns the scales, from which the biases that follow them are made."""
    if t.role == "words":
        for start in range(0, t.n_bytes, BLOCK_BYTES):
            words = rng.integers(0, 1 << 32, min(BLOCK_BYTES, t.n_bytes - start) // 4, dtype=np.uint32)
            if q.mode == "mxfp8":  # some readers take 0x7f for NaN
                b = words.view(np.uint8)
                b -= (b & 127) == 127
            f.write(words.tobytes())
    elif t.role == "norm":
        f.write(bfloat16(1 + 0.1 * rng.standard_normal(t.shape, dtype=np.float32)).tobytes())
    elif t.dtype == "U8":
        f.write(byte_scales(t, q.mode, rng).tobytes())
    elif t.role == "scales":  # uniform q has standard deviation 2^bits / sqrt(12)
        step = t.spread * 12 ** 0.5 / 2 ** q.bits
        last_scales = bfloat16(step * (0.5 + rng.random(t.shape, dtype=np.float32)))
        f.write(last_scales.tobytes())
    else:  # bias = -scale * 2^(bits-1), exact in bfloat16
        scales = (last_scales.astype("<u4") << 16).view("<f4")
        f.write(bfloat16(scales * -float(2 ** (q.bits - 1))).tobytes())
    return last_scales


def into_shards(tensors: list[Tensor], limit: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    size = 0
    for t in tensors:
        if shards[-1] and size + t.n_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(t)
        size += t.n_bytes
    return shards


def write_weights(out: Path, tensors: list[Tensor], q: Quant, seed: int, limit: int) -> int:
    rng = np.random.Generator(np.random.SFC64(seed))
    shards, scales = into_shards(tensors, limit), np.zeros(0, "<u2")
    where: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
        end = 0
        for t in shard:
            header[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [end, end + t.n_bytes]}
            end += t.n_bytes
            where[t.name] = file
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(out / file, "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for t in shard:
                scales = write_data(f, t, q, rng, scales)
    total = sum(t.n_bytes for t in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    write_json(out / "model.safetensors.index.json", index)
    return total


def byte_alphabet() -> list[str]:
    """The byte-level alphabet in the order of the bytes' own code points, as GPT-2 lists it."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in kept] + [chr(0x100 + i) for i in range(256 - len(kept))]


def merge_rules() -> Iterator[tuple[str, str]]:
    """Letter pairs, then pairs of pairs, each with and without a space before; frequent letters first."""
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    order = sorted((i + j, a + b, a, b) for i, a in enumerate(letters) for j, b in enumerate(letters))
    pairs = [(text, a, b) for _, text, a, b in order]
    for _, a, b in pairs:
        yield a, b
    for text, _, _ in pairs:
        yield "\u0120", text
    for reach in range(2 * len(pairs)):
        for i in range(max(0, reach - len(pairs) + 1), min(reach, len(pairs) - 1) + 1):
            yield pairs[i][0], pairs[reach - i][0]
            yield "\u0120" + pairs[i][0], pairs[reach - i][0]


def make_tokenizer(n_vocab: int) -> dict[str, Any]:
    n_merges = n_vocab - 256 - len(SPECIAL)
    if n_merges < 0:
        raise SystemExit(f"--vocab must be at least {256 + len(SPECIAL)}")
    vocab, merges = {c: i for i, c in enumerate(byte_alphabet())}, []
    for a, b in merge_rules():
        if len(merges) == n_merges:
            break
        vocab[a + b] = len(vocab)
        merges.append([a, b])
    if len(merges) < n_merges:
        raise SystemExit("--vocab is larger than the merges this script can name")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    added = [{"id": len(vocab) + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for i, text in enumerate(SPECIAL)]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}, byte_level]},
        "post_processor": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": merges},
    }


def write_json(path: Path, value: Any, indent: int | None = 4) -> None:
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def write_configs(out: Path, s: Shape, q: Quant) -> None:
    end_of_text, _, end_of_turn = (s.vocab - len(SPECIAL) + i for i in range(len(SPECIAL)))
    quantization = {"group_size": q.group, "bits": q.bits, "mode": q.mode}
    write_json(out / "config.json", {
        "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "bos_token_id": end_of_text,
        "eos_token_id": end_of_turn, "head_dim": s.head_dim, "hidden_act": "silu", "hidden_size": s.hidden,
        "intermediate_size": s.intermediate, "max_position_embeddings": 40960, "model_type": "qwen3",
        "num_attention_heads": s.heads, "num_hidden_layers": s.layers, "num_key_value_heads": s.kv_heads,
        "quantization": quantization, "quantization_config": quantization, "rms_norm_eps": 1e-6, "rope_scaling": None,
        "rope_theta": 1000000, "tie_word_embeddings": s.tied, "torch_dtype": "bfloat16", "vocab_size": s.vocab})
    write_json(out / "tokenizer.json", make_tokenizer(s.vocab), indent=None)
    write_json(out / "tokenizer_config.json", {
        "add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
        "unk_token": None, "tokenizer_class": "Qwen2Tokenizer", "model_max_length": 40960, "chat_template": CHAT_TEMPLATE})
    write_json(out / "generation_config.json", {
        "bos_token_id": end_of_text, "eos_token_id": [end_of_turn, end_of_text], "pad_token_id": end_of_text,
        "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b", help="numbers to start from (default %(default)s)")
    for name in ("hidden", "layers", "heads", "kv-heads", "head-dim", "intermediate", "vocab"):
        parser.add_argument(f"--{name}", type=int, help="replaces the shape's number")
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, help="replaces the shape's choice")
    parser.add_argument("--mode", choices=("affine", *MICROSCALING), default="affine", help="all but affine fix bits and groups")
    parser.add_argument("--bits", type=int, choices=(2, 3, 4, 5, 6, 8), default=8)
    parser.add_argument("--group-size", type=int, choices=(32, 64, 128), default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES, help="the most in one file (default 5 GiB)")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    args = parse()
    fields = ("hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "tied")
    shape = replace(SHAPES[args.shape], **{f: getattr(args, f) for f in fields if getattr(args, f) is not None})
    if shape.heads % shape.kv_heads:
        raise SystemExit("--heads must be a multiple of --kv-heads")
    quant = MICROSCALING.get(args.mode, Quant("affine", args.bits, args.group_size))
    tensors = list(list_tensors(shape, quant))
    args.out.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob("model*.safetensors"):
        old.unlink()
    write_configs(args.out, shape, quant)
    total = write_weights(args.out, tensors, quant, args.seed, args.shard_bytes)
    print(f"{args.out}: {total / 1e9:.2f} GB in {len(tensors)} tensors")


if __name__ == "__main__":
    main()
