"""The forward pass in float64 numpy: a second opinion on mlx-lm, written from the formulas."""

from math import ceil, floor, log, pi, sqrt

import numpy as np

import experts64
import gemma64

Array = np.ndarray
Weights = dict[str, Array]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope_frequencies(config: dict, dims: int, n_tokens: int) -> tuple[Array, float]:
    """Angle per position of each pair, or of each token and pair, and the factor of the rotated values."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    base = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta")
    base = base or {"qwen2": 1e6}.get(config["model_type"], 1e4)
    kind = scaling.get("type") or scaling.get("rope_type", "default")
    f = base ** (-2 * np.arange(dims // 2) / dims)
    factor = scaling.get("factor", 1)
    if kind == "linear":
        return f / factor, 1.0
    if kind == "llama3":
        length, low, high = (scaling[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
        wave = 2 * pi / f
        t = (length / wave - low) / (high - low)
        mixed = f * ((1 - t) / factor + t)
        return np.where(wave > length / low, f / factor, np.where(wave < length / high, f, mixed)), 1.0
    if kind == "yarn":
        def index(turns: float) -> float:
            return dims * log(scaling.get("original_max_position_embeddings", 4096) / (2 * pi * turns)) / (2 * log(base))
        low = max(floor(index(scaling.get("beta_fast", 32))), 0)
        high = min(ceil(index(scaling.get("beta_slow", 1))), dims - 1)
        ramp = np.clip((np.arange(dims // 2) - low) / ((high - low) or 0.001), 0, 1)
        m = [0.1 * c * log(factor) + 1 for c in (scaling.get("mscale", 1), scaling.get("mscale_all_dim", 0))]
        return f * ((1 - ramp) + ramp / factor), m[0] / m[1]
    if kind in ("longrope", "su"):
        length = config.get("original_max_position_embeddings") or scaling["original_max_position_embeddings"]
        stretch = config["max_position_embeddings"] / length
        return f / np.array(scaling["long_factor"]), sqrt(1 + log(stretch) / log(length)) if stretch > 1 else 1.0
    if kind == "dynamic":
        stretch = np.maximum(np.arange(1, n_tokens + 1) / config["max_position_embeddings"], 1)[:, None]
        base = base * (factor * stretch - (factor - 1)) ** (dims / (dims - 2))
        return base ** (-2 * np.arange(dims // 2) / dims), 1.0
    assert kind == "default", kind
    return f, 1.0


def rope(x: Array, config: dict) -> Array:
    """x [heads, tokens, dim]; the first dims turn. Pairs are (i, i + dims/2), or (2i, 2i + 1)."""
    dims = config.get("rotary_dim") or int(x.shape[-1] * config.get("partial_rotary_factor", 1.0))
    f, scale = rope_frequencies(config, dims, x.shape[1])
    angle = np.arange(x.shape[1])[:, None] * f
    longrope = (config.get("rope_scaling") or {}).get("type") in ("longrope", "su")
    interleaved = config.get("rope_traditional") and not longrope
    pairs = (slice(0, dims, 2), slice(1, dims, 2)) if interleaved else (slice(0, dims // 2), slice(dims // 2, dims))
    a, b = (x[..., p] for p in pairs)
    out = x.copy()
    out[..., pairs[0]] = scale * (a * np.cos(angle) - b * np.sin(angle))
    out[..., pairs[1]] = scale * (b * np.cos(angle) + a * np.sin(angle))
    return out


def linear(x: Array, w: Weights, path: str) -> Array:
    return x @ w[f"{path}.weight"].T + w.get(f"{path}.bias", 0.0)


def window_of(config: dict, layer: int) -> float:
    types = config.get("layer_types")
    if config["model_type"] == "gpt_oss" and not types:
        types = ["sliding_attention", "full_attention"] * config["num_hidden_layers"]
    sliding = types and types[layer] == "sliding_attention"
    return config["sliding_window"] if sliding else np.inf


def heads_of(x: Array, w: Weights, p: str, config: dict) -> tuple[Array, Array, Array, float]:
    """q, k, v [heads, tokens, dim] with everything on them, and the scale of scores."""
    n_tokens = x.shape[0]
    n_heads, n_kv = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // n_heads
    if f"{p}.qkv_proj.weight" in w:
        parts = np.split(linear(x, w, f"{p}.qkv_proj"), [n_heads * dim, (n_heads + n_kv) * dim], axis=-1)
    else:
        parts = [linear(x, w, f"{p}.{name}_proj") for name in "qkv"]
    for i, name in enumerate(("q_norm", "k_norm")):
        if f"{p}.{name}.weight" in w:  # over a head, or over all of them
            norm = w[f"{p}.{name}.weight"]
            parts[i] = rms_norm(parts[i].reshape(n_tokens, -1, len(norm)), norm, config["rms_norm_eps"])
    q, k, v = (t.reshape(n_tokens, -1, dim).transpose(1, 0, 2) for t in parts)
    k, v = (np.repeat(t, n_heads // n_kv, axis=0) for t in (rope(k, config), v))
    return rope(q, config) * growth(n_tokens, config), k, v, dim ** -0.5


def growth(n_tokens: int, config: dict) -> Array:
    """Of the queries, with the position."""
    p = config.get("rope_parameters") or {}
    beta, length = p.get("llama_4_scaling_beta", 0.0), p.get("original_max_position_embeddings", 1)
    return (1 + beta * np.log(1 + np.arange(n_tokens) // length))[:, None]


def attention(x: Array, w: Weights, layer: int, config: dict) -> Array:
    p = f"model.layers.{layer}.self_attn"
    n_tokens = x.shape[0]
    if "kv_lora_rank" in config:
        q, k, v, scale = experts64.latent_heads(x, w, p, config, rope, rms_norm)
    else:
        q, k, v, scale = heads_of(x, w, p, config)
    score = q @ k.transpose(0, 2, 1) * scale
    back = np.arange(n_tokens)[:, None] - np.arange(n_tokens)
    score = np.where((back >= 0) & (back < window_of(config, layer)), score, -np.inf)
    share = np.exp(score - score.max(axis=-1, keepdims=True))
    total = share.sum(axis=-1, keepdims=True)
    if f"{p}.sinks" in w:
        total = total + np.exp(w[f"{p}.sinks"][:, None, None] - score.max(axis=-1, keepdims=True))
    out = share / total @ v
    return linear(out.transpose(1, 0, 2).reshape(n_tokens, -1), w, f"{p}.o_proj")


def mlp(x: Array, w: Weights, p: str) -> Array:
    if f"{p}.gate_up_proj.weight" in w:
        gate, up = np.split(linear(x, w, f"{p}.gate_up_proj"), 2, axis=-1)
    else:
        gate, up = (linear(x, w, f"{p}.{name}_proj") for name in ("gate", "up"))
    return linear(gate / (1 + np.exp(-gate)) * up, w, f"{p}.down_proj")


def experts(x: Array, w: Weights, p: str, config: dict) -> Array:
    score = linear(x, w, f"{p}.gate")
    score = np.exp(score - score.max(axis=-1, keepdims=True))
    score /= score.sum(axis=-1, keepdims=True)
    out = np.zeros_like(x)
    for t, share in enumerate(score):
        chosen = np.argsort(-share, kind="stable")[:config["num_experts_per_tok"]]
        total = share[chosen].sum() if config["norm_topk_prob"] else 1.0
        for e in chosen:
            one = {f"e.{n}_proj.weight": w[f"{p}.switch_mlp.{n}_proj.weight"][e] for n in ("gate", "up", "down")}
            out[t] += share[e] / total * mlp(x[t], one, "e")
    return out


def feed(x: Array, w: Weights, layer: str, config: dict) -> Array:
    for p in (f"{layer}.mlp", f"{layer}.block_sparse_moe"):
        if f"{p}.router.weight" in w or f"{p}.gate.e_score_correction_bias" in w or f"{p}.e_score_correction_bias" in w:
            return experts64.sparse(x, w, p, config)
    p = f"{layer}.mlp"
    return experts(x, w, p, config) if f"{p}.gate.weight" in w else mlp(x, w, p)


def logits(ids: list[int], w: Weights, config: dict) -> Array:
    """w: dequantised float64 weights by name. Returns [tokens, vocab]."""
    text = config.get("text_config", config)
    if text["model_type"].startswith("gemma"):
        return gemma64.Gemma(w, config).logits(ids)
    config = {**text, "tie_word_embeddings": config["tie_word_embeddings"]}
    w = {name.removeprefix("language_model."): value for name, value in w.items()}
    eps = config["rms_norm_eps"]
    h = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}"
        h = h + attention(rms_norm(h, w[f"{p}.input_layernorm.weight"], eps), w, i, config)
        x = rms_norm(h, w[f"{p}.post_attention_layernorm.weight"], eps)
        h = h + feed(x, w, p, config)
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return rms_norm(h, w["model.norm.weight"], eps) @ w[head].T
