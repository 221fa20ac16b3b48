"""Tiny random repositories in MLX's format, with the logits mlx-lm computes from them in float32.

    python make_models.py [OUT]      OUT/<name>/{config.json, model*.safetensors, golden.json, logits.f32}
"""

import argparse
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

import expert_recipes
import experts64
import gemma_recipes
import reference64
from common import GOLDENS, sha256, versions, write_json

PROMPT_LENGTHS = (1, 9, 70)
N_GREEDY = 24
LOGIT_SPREAD = 4.0  # standard deviation of the logits, so that the two best rarely lie close together
CLOSEST_CHOICE = 5e-4  # of experts, by their scores: rounding must not make it fall the other way
DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}


@dataclass
class Recipe:
    name: str
    seed: int
    note: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    vocab: int
    dtype: str = "bfloat16"
    tied: bool = False
    theta: float = 1_000_000
    eps: float = 1e-6
    quantized: bool = True
    shards: int = 1
    new_rope_keys: bool = False
    model_type: str = "qwen3"
    config: dict[str, Any] = field(default_factory=dict)  # further keys of config.json
    absent: tuple[str, ...] = ()  # keys left out of config.json: the model's own default holds
    overrides: dict[str, Any] = field(default_factory=dict)  # module path -> quantization entry
    stepwise: bool = False  # mlx-lm's result depends on how the prompt is cut: token by token is what counts
    issue: str | None = None


RECIPES = [
    Recipe("tied-bf16", 101, "tied head, GQA 2, odd number of layers",
           hidden=128, layers=3, heads=4, kv_heads=2, head_dim=16, inter=128, vocab=320, tied=True),
    Recipe("untied-f16", 102, "GQA 1, head_dim is twice hidden/heads",
           hidden=64, layers=4, heads=4, kv_heads=4, head_dim=32, inter=128, vocab=512, dtype="float16"),
    Recipe("deep-f32-scales", 103, "float32 scales, seven layers, GQA 4",
           hidden=64, layers=7, heads=8, kv_heads=2, head_dim=16, inter=64, vocab=336, dtype="float32", tied=True),
    Recipe("kv3-inter320", 104, "3 KV heads, 6 heads; 3 groups into o_proj, 5 into down_proj",
           hidden=64, layers=3, heads=6, kv_heads=3, head_dim=32, inter=320, vocab=320, eps=1e-5),
    Recipe("hidden192", 105, "3 groups of hidden, 5 of intermediate; rope base 10000; one KV head",
           hidden=192, layers=3, heads=2, kv_heads=1, head_dim=32, inter=320, vocab=352, theta=10_000, tied=True),
    Recipe("two-shards", 106, "two files and an index; GQA 4 with one KV head; rope_parameters",
           hidden=128, layers=4, heads=4, kv_heads=1, head_dim=16, inter=128, vocab=336, shards=2, new_rope_keys=True),
    Recipe("plain-bf16", 107, "nothing quantised; 5 KV heads; hidden 80 is no multiple of 64",
           hidden=80, layers=3, heads=5, kv_heads=5, head_dim=16, inter=48, vocab=320, quantized=False),
    Recipe("plain-f32", 118, "nothing quantised, float32",
           hidden=48, layers=3, heads=4, kv_heads=2, head_dim=16, inter=96, vocab=320, dtype="float32", tied=True,
           quantized=False),
    Recipe("mixed-overrides", 109, "4-bit groups of 32, 8-bit groups of 128 and plain layers by override",
           hidden=128, layers=3, heads=4, kv_heads=2, head_dim=32, inter=128, vocab=320,
           overrides={"lm_head": False, "model.layers.1.self_attn.o_proj": False,
                      "model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 4},
                      "model.layers.2.mlp.gate_proj": {"group_size": 128, "bits": 8}}),
    Recipe("llama-llama3", 110, "llama3 frequencies: kept, mixed and stretched ones; head_dim derived; own head",
           hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, inter=128, vocab=160, theta=10_000, eps=1e-5,
           model_type="llama", absent=("head_dim",),
           config={"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
    Recipe("llama-yarn-bias", 111, "biases everywhere, yarn with mscale, interleaved pairs; tied by default",
           hidden=64, layers=3, heads=4, kv_heads=1, head_dim=32, inter=64, vocab=160, theta=10_000, tied=True,
           dtype="float16", model_type="llama", absent=("tie_word_embeddings",),
           config={"attention_bias": True, "mlp_bias": True, "rope_traditional": True,
                   "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                                    "beta_fast": 16, "beta_slow": 1}}),
    Recipe("mistral-sliding", 112, "layers with a window of 24 between full ones; linear RoPE scaling; renamed to llama",
           hidden=48, layers=3, heads=3, kv_heads=3, head_dim=16, inter=48, vocab=160, theta=10_000, quantized=False,
           model_type="mistral",
           config={"sliding_window": 24, "rope_scaling": {"type": "linear", "factor": 2.0},
                   "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    Recipe("llama-dynamic", 126, "dynamic RoPE past a context of 40; base by position, as token by token; f16, tied",
           hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, inter=64, vocab=160, theta=10_000, tied=True,
           dtype="float16", model_type="llama", absent=("head_dim",), stepwise=True,
           config={"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 40}),
    Recipe("qwen2-tied", 123, "bias on q, k, v only; rope base and tied head by default; head_dim derived",
           hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, inter=128, vocab=160, tied=True,
           model_type="qwen2", absent=("rope_theta", "tie_word_embeddings", "head_dim")),
    Recipe("qwen2-kv3-f16", 114, "3 KV heads, own head, f16, nothing quantised",
           hidden=48, layers=3, heads=6, kv_heads=3, head_dim=8, inter=48, vocab=160, theta=10_000, dtype="float16",
           quantized=False, model_type="qwen2", absent=("head_dim",)),
    Recipe("phi3-longrope", 115, "fused projections, quantised; longrope on 3/4 of each head, never interleaved",
           hidden=64, layers=3, heads=2, kv_heads=1, head_dim=32, inter=64, vocab=160, theta=10_000, eps=1e-5,
           model_type="phi3", absent=("head_dim",),
           config={"partial_rotary_factor": 0.75, "rope_traditional": True,
                   "max_position_embeddings": 256, "original_max_position_embeddings": 64,
                   "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 12,
                                    "long_factor": [1.0, 1.05, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 12.0, 16.0]}}),
    Recipe("phi3-plain", 121, "fused projections of plain floats; parts that start at no multiple of 16 rows; tied",
           hidden=40, layers=3, heads=5, kv_heads=5, head_dim=8, inter=56, vocab=160, theta=10_000, tied=True,
           quantized=False, model_type="phi3", absent=("head_dim",)),
    Recipe("moe-8bit", 124, "6 experts, 2 a token with weights of sum 1, in every second layer; tied",
           hidden=64, layers=4, heads=4, kv_heads=2, head_dim=16, inter=64, vocab=160, tied=True,
           model_type="qwen3_moe",
           config={"num_experts": 6, "num_experts_per_tok": 2, "decoder_sparse_step": 2, "mlp_only_layers": [],
                   "moe_intermediate_size": 32, "norm_topk_prob": True},
           overrides={f"model.layers.{i}.mlp.switch_mlp.down_proj": {"group_size": 32, "bits": 8} for i in (1, 3)}),
    Recipe("moe-mixed", 125, "experts of 4 bits and, inside, 40 plain columns; routers of 8 bits; one dense layer by list",
           hidden=64, layers=3, heads=4, kv_heads=2, head_dim=16, inter=64, vocab=160, dtype="float16",
           model_type="qwen3_moe",
           config={"num_experts": 5, "num_experts_per_tok": 3, "decoder_sparse_step": 1, "mlp_only_layers": [1],
                   "moe_intermediate_size": 40, "norm_topk_prob": False},
           overrides={f"model.layers.{i}.mlp.{path}": how for i in (0, 2) for path, how in {
               "gate": {"group_size": 32, "bits": 8}, "switch_mlp.gate_proj": {"group_size": 64, "bits": 4},
               "switch_mlp.up_proj": {"group_size": 32, "bits": 4}, "switch_mlp.down_proj": False}.items()}),
]


def make_config(r: Recipe) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": [f"{r.model_type.capitalize()}ForCausalLM"], "model_type": r.model_type,
        "attention_bias": False, "hidden_act": "silu",
        "hidden_size": r.hidden, "num_hidden_layers": r.layers, "num_attention_heads": r.heads,
        "num_key_value_heads": r.kv_heads, "head_dim": r.head_dim, "intermediate_size": r.inter,
        "vocab_size": r.vocab, "rms_norm_eps": r.eps, "max_position_embeddings": 4096,
        "tie_word_embeddings": r.tied, "torch_dtype": r.dtype,
    }
    if r.new_rope_keys:
        config["rope_parameters"] = {"rope_theta": r.theta, "rope_type": "default"}
    else:
        config.update(rope_theta=r.theta, rope_scaling=None)
    if r.quantized:
        config["quantization"] = {"group_size": 64, "bits": 8, "mode": "affine", **r.overrides}
        config["quantization_config"] = config["quantization"]
    config.update(r.config)
    return {key: config[key] for key in sorted(config) if key not in r.absent}


def biases(r: Recipe) -> tuple[bool, bool, bool]:
    """Of q, k and v; of o; of the MLP."""
    attention = r.config.get("attention_bias", False)
    return attention or r.model_type == "qwen2", attention, r.config.get("mlp_bias", False)


def is_sparse(r: Recipe, layer: int) -> bool:
    step = r.config.get("decoder_sparse_step")
    return bool(step) and (layer + 1) % step == 0 and layer not in r.config["mlp_only_layers"]


def random_weights(r: Recipe) -> dict[str, np.ndarray]:
    """Float weights by tensor name. Every linear keeps its input's scale; logits get LOGIT_SPREAD."""
    rng = np.random.RandomState(r.seed)  # the legacy generator: its stream never changes
    w: dict[str, np.ndarray] = {}

    def linear(name: str, n_out: int, n_in: int, gain: float = 1.0, bias: bool = False) -> None:
        w[f"{name}.weight"] = rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)
        if bias:
            w[f"{name}.bias"] = rng.standard_normal(n_out) * gain / 5

    def experts(name: str, n_out: int, n_in: int, gain: float) -> None:
        w[f"{name}.weight"] = rng.standard_normal((r.config["num_experts"], n_out, n_in)) * gain / np.sqrt(n_in)

    def norm(name: str, size: int, mean: float) -> None:
        w[f"{name}.weight"] = mean * (1 + 0.25 * rng.standard_normal(size))

    width, kv_width = r.heads * r.head_dim, r.kv_heads * r.head_dim
    # A tied embedding is small beside what the layers add, else the model would only repeat its input.
    linear("model.embed_tokens", r.vocab, r.hidden, LOGIT_SPREAD if r.tied else np.sqrt(r.hidden))
    residual = LOGIT_SPREAD / np.sqrt(r.hidden) * 6.0 if r.tied else 1.0
    head_norms = r.model_type.startswith("qwen3")
    gain = 1.0 if head_norms else 1.6  # of q and k: scores that matter
    qkv_bias, o_bias, mlp_bias = biases(r)
    for i in range(r.layers):
        p = f"model.layers.{i}"
        norm(f"{p}.input_layernorm", r.hidden, 1.0)
        if r.model_type == "phi3":
            linear(f"{p}.self_attn.qkv_proj", width + 2 * kv_width, r.hidden, gain)
        else:
            linear(f"{p}.self_attn.q_proj", width, r.hidden, gain, qkv_bias)
            linear(f"{p}.self_attn.k_proj", kv_width, r.hidden, gain, qkv_bias)
            linear(f"{p}.self_attn.v_proj", kv_width, r.hidden, 1.0, qkv_bias)
        linear(f"{p}.self_attn.o_proj", r.hidden, width, 1.5 * residual, o_bias)
        if head_norms:
            norm(f"{p}.self_attn.q_norm", r.head_dim, 1.6)
            norm(f"{p}.self_attn.k_norm", r.head_dim, 1.6)
        norm(f"{p}.post_attention_layernorm", r.hidden, 1.0)
        if is_sparse(r, i):
            inner = r.config["moe_intermediate_size"]
            linear(f"{p}.mlp.gate", r.config["num_experts"], r.hidden, 1.5)
            experts(f"{p}.mlp.switch_mlp.gate_proj", inner, r.hidden, 1.5)
            experts(f"{p}.mlp.switch_mlp.up_proj", inner, r.hidden, 1.5)
            experts(f"{p}.mlp.switch_mlp.down_proj", r.hidden, inner, residual)
            continue
        if r.model_type == "phi3":
            linear(f"{p}.mlp.gate_up_proj", 2 * r.inter, r.hidden, 1.5)
        else:
            linear(f"{p}.mlp.gate_proj", r.inter, r.hidden, 1.5, mlp_bias)
            linear(f"{p}.mlp.up_proj", r.inter, r.hidden, 1.5, mlp_bias)
        linear(f"{p}.mlp.down_proj", r.hidden, r.inter, residual, mlp_bias)
    norm("model.norm", r.hidden, 1.0)
    if not r.tied:
        linear("lm_head", r.vocab, r.hidden, LOGIT_SPREAD)
    return w


def quantize(r: Recipe, floats: dict[str, np.ndarray]) -> dict[str, mx.array]:
    tensors: dict[str, mx.array] = {}
    for name, value in floats.items():
        path, w = name.removesuffix(".weight"), mx.array(value.astype(np.float32)).astype(DTYPES[r.dtype])
        how = r.overrides.get(path, {"group_size": 64, "bits": 8})
        if not r.quantized or w.ndim == 1 or how is False:
            tensors[name] = w
        else:
            tensors[name], tensors[f"{path}.scales"], tensors[f"{path}.biases"] = mx.quantize(w, **how)
    return tensors


def save(r: Recipe, folder: Path, tensors: dict[str, mx.array]) -> None:
    """Files as mlx-lm writes them; the shards cut the list of names into equal parts."""
    names = list(tensors)
    cut = -(-len(names) // r.shards)
    files = {}
    for s in range(r.shards):
        file = "model.safetensors" if r.shards == 1 else f"model-{s + 1:05d}-of-{r.shards:05d}.safetensors"
        part = names[s * cut:(s + 1) * cut]
        files.update({name: file for name in part})
        mx.save_safetensors(str(folder / file), {n: tensors[n] for n in part}, metadata={"format": "mlx"})
    if r.shards > 1:
        total = sum(t.nbytes for t in tensors.values())
        write_json(folder / "model.safetensors.index.json",
                   {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}, indent=4)
    write_json(folder / "config.json", make_config(r), indent=4)


def run(model: Any, prompt: list[int], stepwise: bool) -> tuple[np.ndarray, list[int]]:
    """Prefill, at once or not, then one token at a time with the KV cache. Row len(prompt) - 1 + k predicts greedy[k]."""
    cache = make_prompt_cache(model)
    parts = [[token] for token in prompt] if stepwise else [prompt]
    rows = [np.array(model(mx.array([part]), cache=cache)[0]) for part in parts]
    greedy = [int(rows[-1][-1].argmax())]
    while len(greedy) < N_GREEDY:
        rows.append(np.array(model(mx.array([[greedy[-1]]]), cache=cache)[0]))
        greedy.append(int(rows[-1][-1].argmax()))
    return np.concatenate(rows), greedy


def dequantized64(r: Recipe, tensors: dict[str, mx.array]) -> dict[str, np.ndarray]:
    out = {}
    for name, value in tensors.items():
        path = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if f"{path}.scales" not in tensors:
            out[name] = np.array(value.astype(mx.float32)).astype(np.float64)
            continue
        how = r.overrides.get(path, {"group_size": 64, "bits": 8})
        words, bits = np.array(value), how["bits"]
        q = (words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & np.uint32(2 ** bits - 1)
        scale, bias = (np.array(tensors[f"{path}.{s}"].astype(mx.float32)).astype(np.float64)[..., None]
                       for s in ("scales", "biases"))
        q = q.reshape(*scale.shape[:-1], how["group_size"])
        out[name] = (scale * q + bias).reshape(*scale.shape[:-2], -1)
    return out


def write(r: Any, folder: Path) -> dict[str, np.ndarray]:
    """Makes the repository; returns its weights in float64."""
    if isinstance(r, expert_recipes.FamilyRecipe):
        expert_recipes.write(r, folder)
        return expert_recipes.dequantized64(r, folder)
    tensors = quantize(r, random_weights(r))
    save(r, folder, tensors)
    return dequantized64(r, tensors)


def make(r: Any, folder: Path) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights64 = write(r, folder)
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(mx.load(str(file)))

    family = isinstance(r, expert_recipes.FamilyRecipe)
    model, config = expert_recipes.mlx_model(r, folder) if family else load_model(folder)
    model.set_dtype(mx.float32)  # scales and biases too: exact, so the golden is the weights' own result
    experts64.closest[0] = np.inf
    rng = np.random.RandomState(r.seed + 1000)
    cases, blocks, worst = [], [], 0.0
    for length in PROMPT_LENGTHS:
        prompt = rng.randint(0, r.vocab, length).tolist()
        rows, greedy = run(model, prompt, getattr(r, "stepwise", False))
        exact = reference64.logits(prompt + greedy[:-1], weights64, {**config, "tie_word_embeddings": r.tied})
        worst = max(worst, float(np.abs(rows - exact).max()))
        top = np.sort(rows[length - 1:], axis=-1)
        margin = [float(f"{m:.6g}") for m in top[:, -1] - top[:, -2]]
        cases.append({"prompt": prompt, "greedy": greedy, "margin": margin,
                      "logits_offset_floats": sum(b.size for b in blocks), "n_positions": len(rows)})
        blocks.append(rows)
    assert worst < 2e-3, f"{r.name}: mlx-lm and the float64 reference disagree by {worst}"
    assert experts64.closest[0] > CLOSEST_CHOICE, f"{r.name}: a choice of experts by {experts64.closest[0]:.1e}"

    flat = np.concatenate(blocks)
    flat.astype("<f4").tofile(folder / "logits.f32")
    negative = sum(int((t < 0).sum()) for n, t in tensors.items() if n.endswith(".scales"))
    files = sorted(p.name for p in folder.iterdir() if p.name != "logits.f32")
    golden = {
        "versions": versions("mlx", "mlx-lm", "numpy"), "seed": r.seed, "note": r.note,
        "vocab_size": r.vocab, "negative_scales": negative, "max_abs_error_vs_float64": float(f"{worst:.2g}"),
        "sha256": {name: sha256(folder / name) for name in files}, "cases": cases,
    }
    if r.issue:
        golden["issue"] = r.issue
    write_json(folder / "golden.json", golden, indent=None)
    margins = np.array([m for c in cases for m in c["margin"]])
    distinct = [len(set(c["greedy"])) for c in cases]
    size = sum(p.stat().st_size for p in folder.iterdir()) // 1024
    return (f"{r.name:16s} {size:5d} KB  logits std {flat.std():.2f}  margin min {margins.min():.3f} "
            f"{(margins < 0.05).sum()}/{margins.size} below 0.05  distinct {distinct}  error {worst:.1e} negative {negative}  closest choice {experts64.closest[0]:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=GOLDENS / "models")
    parser.add_argument("--only", default="", help="models whose names start so")
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    for recipe in [*RECIPES, *expert_recipes.RECIPES, *gemma_recipes.RECIPES]:
        if recipe.name.startswith(args.only):
            print(make(recipe, args.out / recipe.name))


if __name__ == "__main__":
    main()
