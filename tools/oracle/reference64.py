"""The qwen3 forward pass in float64 numpy: a second opinion on mlx-lm, written from the formulas."""

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope(x: Array, base: float) -> Array:
    """x [heads, tokens, dim]; pairs are (i, i + dim/2)."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * base ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def attention(x: Array, w: Weights, p: str, config: dict, base: float) -> Array:
    n_tokens = x.shape[0]
    n_heads, n_kv, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]

    def heads(name: str, n: int) -> Array:  # [n, tokens, dim]
        return (x @ w[f"{p}.{name}_proj.weight"].T).reshape(n_tokens, n, dim).transpose(1, 0, 2)

    eps = config["rms_norm_eps"]
    q = rope(rms_norm(heads("q", n_heads), w[f"{p}.q_norm.weight"], eps), base)
    k = rope(rms_norm(heads("k", n_kv), w[f"{p}.k_norm.weight"], eps), base)
    k, v = (np.repeat(t, n_heads // n_kv, axis=0) for t in (k, heads("v", n_kv)))
    score = q @ k.transpose(0, 2, 1) / np.sqrt(dim)
    score = np.where(np.tri(n_tokens, dtype=bool), score, -np.inf)
    share = np.exp(score - score.max(axis=-1, keepdims=True))
    out = share / share.sum(axis=-1, keepdims=True) @ v
    return out.transpose(1, 0, 2).reshape(n_tokens, n_heads * dim) @ w[f"{p}.o_proj.weight"].T


def mlp(x: Array, w: Weights, p: str) -> Array:
    gate, up = (x @ w[f"{p}.{name}_proj.weight"].T for name in ("gate", "up"))
    return (gate / (1 + np.exp(-gate)) * up) @ w[f"{p}.down_proj.weight"].T


def logits(ids: list[int], w: Weights, config: dict) -> Array:
    """w: dequantised float64 weights by name. Returns [tokens, vocab]."""
    base = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    eps = config["rms_norm_eps"]
    h = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}"
        h = h + attention(rms_norm(h, w[f"{p}.input_layernorm.weight"], eps), w, f"{p}.self_attn", config, base)
        h = h + mlp(rms_norm(h, w[f"{p}.post_attention_layernorm.weight"], eps), w, f"{p}.mlp")
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return rms_norm(h, w["model.norm.weight"], eps) @ w[head].T
