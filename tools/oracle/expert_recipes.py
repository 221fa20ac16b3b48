"""Tiny models of the families with experts: written by mlx-lm itself, weights by the parameters' names."""

import re
import shutil
import tempfile
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes, load_model, quantize_model, save_config, save_model

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}


def affine(bits: int, group: int) -> dict[str, Any]:
    return {"group_size": group, "bits": bits, "mode": "affine"}


MXFP4 = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
MXFP8 = {"group_size": 32, "bits": 8, "mode": "mxfp8"}
NVFP4 = {"group_size": 16, "bits": 4, "mode": "nvfp4"}


@dataclass
class FamilyRecipe:
    name: str
    seed: int
    note: str
    config: dict[str, Any]  # all of it but the quantization
    dtype: str = "bfloat16"
    quant: list[tuple[str, Any]] = field(default_factory=list)  # (expression, how or False), the first that matches
    told: dict[str, Any] = field(default_factory=dict)  # what mlx-lm has to be told and the file does not say
    joined: Any = None  # keys and values of latent attention in one matrix, stored so (False: plain)
    issue: str | None = None

    @property
    def vocab(self) -> int:
        return self.config["vocab_size"]

    @property
    def tied(self) -> bool:
        return self.config["model_type"].startswith("minimax") and self.config["tie_word_embeddings"]

    def weight(self, name: str, shape: tuple[int, ...], rng: np.random.RandomState) -> np.ndarray:
        return random_weight(name, shape, self.tied, rng)

    def before_weights(self, model: Any) -> None:
        """What has to be done to mlx-lm's model first."""

    def after_saving(self, folder: Path) -> None:
        """What has to be done to the files."""


def common(model_type: str, hidden: int, layers: int, heads: int, kv: int, inter: int, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv, "intermediate_size": inter, "vocab_size": 128, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096, "rope_theta": 10000, **more}


def experts(n: int, top: int, inner: int, shared: int | None, **more: Any) -> dict[str, Any]:
    return {"n_routed_experts": n, "num_experts_per_tok": top, "moe_intermediate_size": inner, "n_shared_experts": shared,
            "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
            "first_k_dense_replace": 1, "topk_method": "noaux_tc", **more}


def latent(kv: int, q: int | None, nope: int, rope: int, v: int, **more: Any) -> dict[str, Any]:
    return {"kv_lora_rank": kv, "q_lora_rank": q, "qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": v,
            "attention_bias": False, "rope_scaling": None, **more}


def yarn(factor: float, **more: Any) -> dict[str, Any]:
    return {"type": "yarn", "factor": factor, "original_max_position_embeddings": 64, "beta_fast": 16, "beta_slow": 1,
            **more}


def glm(**more: Any) -> dict[str, Any]:
    return {"head_dim": 32, "partial_rotary_factor": 0.5, "rope_scaling": None, "tie_word_embeddings": False, **more}


def gpt_oss(experts: int, top: int, window: int, **more: Any) -> dict[str, Any]:
    return {"head_dim": 16, "num_local_experts": experts, "num_experts_per_tok": top, "sliding_window": window,
            "rope_theta": 150000, **more}


SLIDING, FULL = "sliding_attention", "full_attention"
EXPERTS = r"\.(experts|switch_mlp)\."

RECIPES = [
    FamilyRecipe("gpt-oss-mxfp4", 381, "experts mxfp4, the rest 8 bits; windows of 24 and full by turns; yarn",
                 common("gpt_oss", 64, 4, 4, 2, 32, **gpt_oss(4, 2, 24, rope_scaling=yarn(8.0, truncate=False))),
                 quant=[(EXPERTS, MXFP4), ("", affine(8, 32))]),
    FamilyRecipe("gpt-oss-plain", 282, "nothing quantised, 24 columns inside; layer_types: full, window 8, window 8",
                 common("gpt_oss", 48, 3, 4, 1, 24, **gpt_oss(5, 3, 8, layer_types=[FULL, SLIDING, SLIDING],
                                                              rope_scaling=None))),
    FamilyRecipe("gpt-oss-odd", 303, "five layers and no layer_types: mlx-lm is told them, as it would skip the last",
                 common("gpt_oss", 64, 5, 2, 2, 32, **gpt_oss(4, 1, 16, rope_scaling=None)), dtype="float16",
                 quant=[(r"experts\.down", affine(8, 32)), (EXPERTS, NVFP4), ("lm_head|router", False),
                        ("", affine(4, 32))],
                 told={"layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING]}),
    FamilyRecipe("glm4-moe-groups", 404, "8 experts in 4 groups, 2 groups and 3 experts a token, 2 shared; biases, q/k norms",
                 common("glm4_moe", 64, 3, 4, 2, 64, **glm(attention_bias=True, use_qk_norm=True), **experts(
                     8, 3, 32, 2, n_group=4, topk_group=2, routed_scaling_factor=2.5)),
                 quant=[(r"switch_mlp\.(gate|down)", affine(4, 32)), (r"switch_mlp\.up", affine(5, 64)),
                        (r"shared_experts\.down", affine(6, 64)), ("v_proj", affine(3, 64)), ("", affine(8, 32))]),
    FamilyRecipe("glm4-moe-plain", 405, "one expert of 5 a token, its weight not made 1; every layer sparse; plain f16",
                 common("glm4_moe", 48, 3, 3, 3, 48, **glm(attention_bias=False, use_qk_norm=False, head_dim=16), **experts(
                     5, 1, 24, 1, first_k_dense_replace=0)), dtype="float16"),
    FamilyRecipe("glm4-lite-nvfp4", 246, "latent attention, queries through a latent; nvfp4 with 8-bit ends",
                 common("glm4_moe_lite", 64, 3, 4, 4, 64, **latent(64, 48, 32, 16, 32), **experts(
                     6, 2, 48, 1, routed_scaling_factor=1.8)),
                 quant=[("embed_tokens|lm_head", affine(8, 64)), ("", NVFP4)]),
    FamilyRecipe("glm4-lite-direct", 407, "latent attention, direct queries, no shared expert, every second layer sparse",
                 common("glm4_moe_lite", 64, 4, 2, 2, 64, **latent(32, None, 64, 32, 16), **experts(
                     4, 2, 32, None, moe_layer_freq=2, first_k_dense_replace=0)), dtype="float32",
                 quant=[("embed_q", affine(6, 64)), ("unembed_out", False), (r"switch_mlp\.down", affine(3, 32)),
                        ("down_proj", affine(3, 64)), ("", affine(2, 32))]),
    FamilyRecipe("minimax-mxfp8", 208, "norms over all heads at once, 16 of 32 values turn; mxfp8, routers of 8 bits",
                 common("minimax", 64, 3, 4, 2, 32, head_dim=32, num_local_experts=5, num_experts_per_tok=3, rotary_dim=16,
                        shared_intermediate_size=0, tie_word_embeddings=False),
                 quant=[("gate$", affine(8, 64)), ("", MXFP8)]),
    FamilyRecipe("minimax-m2-tied", 229, "under its other name; no q/k norms; tied; 2 and 4 bits",
                 common("minimax_m2", 64, 4, 4, 1, 32, head_dim=16, num_local_experts=4, num_experts_per_tok=2, rotary_dim=8,
                        shared_intermediate_size=0, tie_word_embeddings=True, use_qk_norm=False), dtype="float16",
                 quant=[("embed_tokens", affine(8, 64)), (r"switch_mlp\.down", affine(4, 32)), (EXPERTS, affine(2, 64)),
                        ("", affine(6, 32))]),
    FamilyRecipe("deepseek-yarn", 310, "queries through a latent, yarn with mscale_all_dim, groups, 2 shared experts, biases",
                 common("deepseek_v3", 64, 3, 4, 4, 64, **latent(64, 64, 32, 16, 32, attention_bias=True, rope_scaling=yarn(
                     40.0, mscale=1.0, mscale_all_dim=1.0)), **experts(
                     8, 3, 32, 2, n_group=4, topk_group=2, routed_scaling_factor=2.5, moe_layer_freq=1)),
                 quant=[(r"switch_mlp\.down", affine(4, 32)), ("embed_q", affine(4, 32)), ("", affine(4, 32))]),
    FamilyRecipe("deepseek-direct", 411, "direct queries, no groups, weights not made 1, every second layer dense; plain bf16",
                 common("deepseek_v3", 48, 3, 3, 3, 48, **latent(48, None, 16, 8, 24), **experts(
                     5, 2, 24, 1, norm_topk_prob=False, first_k_dense_replace=0, moe_layer_freq=2))),
    FamilyRecipe("deepseek-mixed", 252, "latents of 128 in groups of 128; mxfp4 experts, 5 and 6 bits; yarn with two mscales",
                 common("deepseek_v3", 64, 3, 2, 2, 32, **latent(128, 32, 64, 32, 64, rope_scaling=yarn(
                     16.0, mscale=1.0, mscale_all_dim=0.707)), **experts(
                     4, 2, 32, 1, n_group=2, topk_group=1, routed_scaling_factor=1.5, moe_layer_freq=1)), dtype="float16",
                 quant=[("unembed_out", affine(8, 128)), ("embed_q", affine(5, 64)), (EXPERTS, MXFP4), ("q_b", affine(6, 32)),
                        ("shared_experts.down", affine(6, 32)), ("", affine(5, 32))]),
    FamilyRecipe("deepseek-joined", 274, "keys and values in one matrix (kv_b_proj) of 4 bits, as older conversions have them",
                 common("deepseek_v3", 64, 3, 4, 4, 64, **latent(64, 32, 32, 16, 16), **experts(
                     4, 2, 32, 1, moe_layer_freq=1)),
                 quant=[("embed_q|unembed_out", False), (r"q_b|down", affine(4, 32)), ("", affine(4, 32))], joined=affine(4, 64)),
    FamilyRecipe("deepseek-joined-plain", 275, "the same in plain f16, with 48 and 24 columns that are no whole tiles",
                 common("deepseek_v3", 48, 3, 3, 3, 48, **latent(48, None, 16, 8, 24), **experts(
                     4, 1, 16, 1, moe_layer_freq=1)), dtype="float16", joined=False),
    FamilyRecipe("kimi-k2", 433, "kimi_k2 is deepseek_v3: no groups, one shared expert, yarn of factor 32",
                 common("kimi_k2", 64, 3, 4, 4, 64, **latent(64, 64, 16, 16, 16, rope_scaling=yarn(
                     32.0, mscale=1.0, mscale_all_dim=1.0)), **experts(
                     6, 2, 32, 1, routed_scaling_factor=2.827, moe_layer_freq=1)),
                 quant=[("shared|" + EXPERTS, affine(4, 32)), ("embed_q", False), ("", affine(8, 32))]),
]

# Standard deviation of what a linear gives for inputs of size 1; the first expression that matches.
GAINS = [("lm_head", 4.0), ("o_proj", 1.5), ("down_proj|unembed_out|v_proj", 1.0), ("[qk]_proj|q_b_proj", 1.6), ("", 1.5)]


def random_weight(name: str, shape: tuple[int, ...], tied: bool, rng: np.random.RandomState) -> np.ndarray:
    noise = rng.standard_normal(shape)
    if name.endswith("norm.weight"):
        return (1.6 if re.search(r"\.[qk]_norm", name) else 1.0) * (1 + 0.25 * noise)
    if name.endswith("e_score_correction_bias"):
        return 0.1 * noise
    if name.endswith("sinks"):
        return 1.0 + noise
    if name.endswith(".bias"):
        return 0.3 * noise
    if "embed_tokens" in name:
        return noise * (4.0 / np.sqrt(shape[-1]) if tied else 1.0)
    gain = next(g for expression, g in GAINS if re.search(expression, name))
    if tied and re.search("o_proj|down_proj", name):
        gain *= 24.0 / np.sqrt(shape[-2])
    return gain * noise / np.sqrt(shape[-1])


def write(r: FamilyRecipe, folder: Path) -> None:
    """The repository, as mlx-lm writes it."""
    config = deepcopy({**r.config, **r.told})  # mlx-lm fills in what it lacks
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    r.before_weights(model)
    rng = np.random.RandomState(r.seed)
    shapes = {name: value.shape for name, value in tree_flatten(model.parameters())}
    weights = {name: r.weight(name, shapes[name], rng) for name in sorted(shapes)}
    model.update(tree_unflatten([(n, mx.array(w.astype(np.float32)).astype(DTYPES[r.dtype])) for n, w in weights.items()]))
    config = {**r.config, "torch_dtype": r.dtype}
    if r.quant:
        def choose(path: str, module: Any) -> Any:
            how = next(how for expression, how in r.quant if re.search(expression, path))
            return (how == top or how) if hasattr(module, "to_quantized") else False
        top = r.quant[-1][1]
        model, config = quantize_model(model, config, top["group_size"], top["bits"], mode=top["mode"],
                                       quant_predicate=choose)
    save_model(folder, model, donate_model=True)
    save_config(config, folder / "config.json")
    (folder / "model.safetensors.index.json").unlink()
    r.after_saving(folder)
    if r.joined is not None:
        join(r, folder)


def join(r: FamilyRecipe, folder: Path) -> None:
    """Puts embed_q and unembed_out of every layer into one kv_b_proj."""
    file = str(folder / "model.safetensors")
    tensors = dict(mx.load(file))
    for i in range(r.config["num_hidden_layers"]):
        p = f"model.layers.{i}.self_attn"
        keys, values = (tensors.pop(f"{p}.{n}.weight") for n in ("embed_q", "unembed_out"))
        both = mx.concatenate([keys.swapaxes(-1, -2), values], axis=1).flatten(0, 1)
        if r.joined:
            parts = mx.quantize(both, **r.joined)  # config.json says nothing of it: shapes do
            tensors.update(zip((f"{p}.kv_b_proj.{n}" for n in ("weight", "scales", "biases")), parts))
        else:
            tensors[f"{p}.kv_b_proj.weight"] = both
    mx.eval(tensors)
    mx.save_safetensors(file, {name: tensors[name] for name in sorted(tensors)}, metadata={"format": "mlx"})


def split(r: FamilyRecipe, tensors: dict[str, Any], dtype: Any) -> None:
    """The reverse, without rounding: mlx-lm would quantise the parts anew."""
    heads, nope = r.config["num_attention_heads"], r.config["qk_nope_head_dim"]
    for i in range(r.config["num_hidden_layers"]):
        p = f"model.layers.{i}.self_attn"
        both, *parts = (tensors.pop(f"{p}.kv_b_proj.{n}") for n in ("weight", "scales", "biases")
                        if f"{p}.kv_b_proj.{n}" in tensors)
        if parts:
            both = mx.dequantize(both, *(t.astype(mx.float32) for t in parts), **r.joined)
        both = both.astype(dtype).reshape(heads, -1, r.config["kv_lora_rank"])
        tensors[f"{p}.embed_q.weight"] = mx.contiguous(both[:, :nope].swapaxes(-1, -2))
        tensors[f"{p}.unembed_out.weight"] = mx.contiguous(both[:, nope:])


def mlx_model(r: FamilyRecipe, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The repository in mlx-lm."""
    if r.joined is None:
        return load_model(folder, model_config=r.told)
    with tempfile.TemporaryDirectory() as twin:
        tensors = dict(mx.load(str(folder / "model.safetensors")))
        split(r, tensors, mx.float32)
        mx.eval(tensors)
        mx.save_safetensors(f"{twin}/model.safetensors", tensors, metadata={"format": "mlx"})
        shutil.copy(folder / "config.json", twin)
        return load_model(Path(twin))


def dequantized64(r: FamilyRecipe, folder: Path) -> dict[str, np.ndarray]:
    tensors = dict(mx.load(str(folder / "model.safetensors")))
    if r.joined is not None:
        split(r, tensors, mx.float32)
    out = {}
    for name, value in tensors.items():
        path = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if f"{path}.scales" in tensors:
            how = next(how for expression, how in r.quant if re.search(expression, path))
            parts = [tensors.get(f"{path}.{s}") for s in ("scales", "biases")]
            if how["mode"] == "affine":
                parts = [p.astype(mx.float32) for p in parts]
            value = mx.dequantize(value, *parts, **how, dtype=mx.float32)
        out[name] = np.array(value.astype(mx.float32)).astype(np.float64)
    return out
