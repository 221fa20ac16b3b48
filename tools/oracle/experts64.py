"""Routers, experts and latent attention in float64 numpy, from the formulas: part of reference64.py."""

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]

closest = [np.inf]  # how near a choice came to falling the other way: the least gap seen, of scores


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def best(score: Array, k: int) -> Array:
    order = np.argsort(-score, kind="stable")
    if k < len(order):
        closest[0] = min(closest[0], score[order[k - 1]] - score[order[k]])
    return np.sort(order[:k])


def by_sigmoid(logits: Array, correction: Array, config: dict, eps: float) -> tuple[Array, Array]:
    p = sigmoid(logits)
    score = p + correction
    groups = config.get("n_group") or 1
    if groups > 1:
        each = score.reshape(groups, -1)
        kept = best(np.sort(each, axis=-1)[:, -2:].sum(axis=-1), config["topk_group"])
        score = np.where(np.isin(np.arange(groups), kept)[:, None], each, 0.0).reshape(-1)
    top = config["num_experts_per_tok"]
    chosen = best(score, top)
    w = p[chosen]
    if config.get("norm_topk_prob", True) and top > 1 or "num_local_experts" in config:
        w = w / (w.sum() + eps)
    return chosen, w * (config.get("routed_scaling_factor") or 1.0)


def route(x: Array, w: Weights, p: str, config: dict) -> tuple[Array, Array]:
    """Of one token: which experts, and what they weigh."""
    if f"{p}.router.weight" in w:
        logits = w[f"{p}.router.weight"] @ x + w[f"{p}.router.bias"]
        chosen = best(logits, config["num_experts_per_tok"])
        return chosen, softmax(logits[chosen])
    correction = w.get(f"{p}.gate.e_score_correction_bias", w.get(f"{p}.e_score_correction_bias"))
    return by_sigmoid(w[f"{p}.gate.weight"] @ x, correction, config, 1e-20)


def swiglu(gate: Array, up: Array) -> Array:
    return gate * sigmoid(gate) * up


def swiglu_oai(gate: Array, up: Array) -> Array:
    gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
    return gate * sigmoid(1.702 * gate) * (up + 1.0)


def sparse(x: Array, w: Weights, p: str, config: dict) -> Array:
    """x [tokens, hidden] through the experts of the module p."""
    oai = f"{p}.router.weight" in w
    e = f"{p}.experts" if oai else f"{p}.switch_mlp"
    act = swiglu_oai if oai else swiglu

    def linear(name: str, i: int, v: Array) -> Array:
        bias = w.get(f"{e}.{name}_proj.bias")
        return w[f"{e}.{name}_proj.weight"][i] @ v + (0.0 if bias is None else bias[i])

    out = np.zeros_like(x)
    for t, v in enumerate(x):
        for i, share in zip(*route(v, w, p, config)):
            out[t] += share * linear("down", i, act(linear("gate", i, v), linear("up", i, v)))
    if f"{p}.shared_experts.gate_proj.weight" in w:
        gate, up, down = (w[f"{p}.shared_experts.{n}_proj.weight"].T for n in ("gate", "up", "down"))
        out += swiglu(x @ gate, x @ up) @ down
    return out


def latent_heads(x: Array, w: Weights, p: str, config: dict, rope, rms_norm) -> tuple[Array, Array, Array, float]:
    """q, k, v [heads, tokens, width] and the scale, with keys and values made whole (not as the program does it)."""
    eps = config["rms_norm_eps"] if config["model_type"] == "glm4_moe_lite" else 1e-6
    heads, nope, rank = config["num_attention_heads"], config["qk_nope_head_dim"], config["kv_lora_rank"]
    turn = {**config, "rope_traditional": True, "partial_rotary_factor": 1.0}

    def linear(name: str, v: Array) -> Array:
        return v @ w[f"{p}.{name}.weight"].T + w.get(f"{p}.{name}.bias", 0.0)

    if f"{p}.q_proj.weight" in w:
        q = linear("q_proj", x)
    else:
        q = linear("q_b_proj", rms_norm(linear("q_a_proj", x), w[f"{p}.q_a_layernorm.weight"], eps))
    q = q.reshape(len(x), heads, -1).transpose(1, 0, 2)
    both = linear("kv_a_proj_with_mqa", x)
    c = rms_norm(both[:, :rank], w[f"{p}.kv_a_layernorm.weight"], eps)
    k_rope = np.repeat(rope(both[None, :, rank:], turn), heads, axis=0)
    k = np.concatenate([np.einsum("tr,hrn->htn", c, w[f"{p}.embed_q.weight"]), k_rope], axis=-1)
    v = np.einsum("tr,hvr->htv", c, w[f"{p}.unembed_out.weight"])
    q = np.concatenate([q[..., :nope], rope(q[..., nope:], turn)], axis=-1)
    scaling = config.get("rope_scaling") or {}
    m = 0.1 * scaling.get("mscale_all_dim", 0) * np.log(scaling.get("factor", 1)) + 1
    return q, k, v, q.shape[-1] ** -0.5 * m * m
