"""Gemma 2, 3 and 4 in float64 numpy, from the formulas: part of reference64.py."""

from math import sqrt

import numpy as np

import experts64

Array = np.ndarray
Weights = dict[str, Array]


def rms_norm(x: Array, weight: Array | float, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def gelu(x: Array) -> Array:
    return x / 2 * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def bfloat16(x: float) -> float:
    bits = np.array([x], np.float32).view(np.uint32)[0]
    return float(np.array([(int(bits) + 0x7FFF + (int(bits) >> 16 & 1)) >> 16 << 16], np.uint32).view(np.float32)[0])


class Gemma:
    def __init__(self, w: Weights, config: dict):
        text = config.get("text_config", config)
        self.w = {name.removeprefix("language_model."): value for name, value in w.items()}
        self.c, self.kind = text, text["model_type"]
        self.eps = text.get("rms_norm_eps", 1e-6)
        self.layers, self.hidden = text["num_hidden_layers"], text["hidden_size"]
        self.heads = text.get("num_attention_heads", 8)
        self.past: dict[bool, tuple[Array, Array]] = {}  # K and V of the last own layer of each kind

    def norm(self, x: Array, path: str) -> Array:
        return rms_norm(x, self.w[f"{path}.weight"] + (self.kind != "gemma4_text"), self.eps)

    def linear(self, x: Array, path: str) -> Array:
        return x @ self.w[f"{path}.weight"].T

    def sliding(self, i: int) -> bool:
        if self.kind == "gemma2":
            return False
        types = self.c.get("layer_types")
        return types[i] == "sliding_attention" if types else (i + 1) % self.c["sliding_window_pattern"] != 0

    def frequencies(self, i: int, dim: int) -> Array:
        at = -2 * np.arange(dim // 2) / dim
        if self.kind == "gemma4_text":
            how = self.c["rope_parameters"]["sliding_attention" if self.sliding(i) else "full_attention"]
            f = how["rope_theta"] ** at
            if how["rope_type"] != "proportional":
                return f
            turned = int(dim * how["partial_rotary_factor"])
            return np.where(2 * np.arange(dim // 2) < turned, f / how.get("factor", 1.0), 0.0)
        if self.sliding(i):
            return self.c["rope_local_base_freq"] ** at
        return self.c.get("rope_theta", 10000.0) ** at / (self.c.get("rope_scaling") or {}).get("factor", 1.0)

    def rope(self, x: Array, i: int) -> Array:
        angle = np.arange(x.shape[1])[:, None] * self.frequencies(i, x.shape[-1])
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)

    def per_head(self, x: Array, path: str, heads: int) -> Array:
        return self.linear(x, path).reshape(len(x), heads, -1).transpose(1, 0, 2)

    def keys_values(self, x: Array, i: int) -> tuple[Array, Array]:
        p, full = f"model.layers.{i}.self_attn", not self.sliding(i)
        if i >= self.layers - self.c.get("num_kv_shared_layers", 0):
            return self.past[full]
        k_is_v = self.c.get("attention_k_eq_v", False) and full
        n = k_is_v and self.c.get("num_global_key_value_heads") or self.c.get("num_key_value_heads")
        k = self.per_head(x, f"{p}.k_proj", n)
        v = k if k_is_v else self.per_head(x, f"{p}.v_proj", n)
        if self.kind != "gemma2":
            k = self.norm(k, f"{p}.k_norm")
        if self.kind == "gemma4_text":
            v = rms_norm(v, 1.0, self.eps)
        self.past[full] = self.rope(k, i), v
        return self.past[full]

    def attention(self, x: Array, i: int) -> Array:
        p = f"model.layers.{i}.self_attn"
        q = self.per_head(x, f"{p}.q_proj", self.heads)
        if self.kind != "gemma2":
            q = self.norm(q, f"{p}.q_norm")
        k, v = (np.repeat(t, self.heads // len(t), axis=0) for t in self.keys_values(x, i))
        scale = 1.0 if self.kind == "gemma4_text" else self.c.get("query_pre_attn_scalar", 144 if self.kind == "gemma2" else 256) ** -0.5
        score = scale * self.rope(q, i) @ k.transpose(0, 2, 1)
        if self.kind == "gemma2":
            cap = self.c.get("attn_logit_softcapping", 50.0)
            score = cap * np.tanh(score / cap)
        back = np.arange(len(x))[:, None] - np.arange(len(x))
        window = self.c["sliding_window"] if self.sliding(i) else np.inf
        share = softmax(np.where((back >= 0) & (back < window), score, -np.inf))
        return self.linear((share @ v).transpose(1, 0, 2).reshape(len(x), -1), f"{p}.o_proj")

    def mlp(self, x: Array, p: str) -> Array:
        return self.linear(gelu(self.linear(x, f"{p}.gate_proj")) * self.linear(x, f"{p}.up_proj"), f"{p}.down_proj")

    def experts(self, x: Array, h: Array, p: str) -> Array:
        """Of x, chosen by h."""
        logits = self.linear(rms_norm(h, self.w[f"{p}.router.scale"] * self.hidden ** -0.5, self.eps), f"{p}.router.proj")
        out = np.zeros_like(x)
        gate, up, down = (self.w[f"{p}.experts.switch_glu.{n}_proj.weight"] for n in ("gate", "up", "down"))
        for t, l in enumerate(logits):
            chosen = experts64.best(l, self.c["top_k_experts"])
            for e, share in zip(chosen, softmax(l[chosen]) * self.w[f"{p}.router.per_expert_scale"][chosen]):
                out[t] += share * (down[e] @ (gelu(gate[e] @ x[t]) * (up[e] @ x[t])))
        return out

    def feed(self, h: Array, p: str) -> Array:
        y = self.mlp(self.norm(h, f"{p}.pre_feedforward_layernorm"), f"{p}.mlp")
        if not self.c.get("enable_moe_block"):
            return y
        x = self.norm(h, f"{p}.pre_feedforward_layernorm_2")
        return (self.norm(y, f"{p}.post_feedforward_layernorm_1") +
                self.norm(self.experts(x, h, p), f"{p}.post_feedforward_layernorm_2"))

    def own_input(self, h: Array, embedded: Array, ids: list[int], i: int) -> Array:
        p, size = f"model.layers.{i}", self.c["hidden_size_per_layer_input"]
        own = slice(i * size, (i + 1) * size)
        projected = embedded @ self.w["model.per_layer_model_projection.weight"][own].T * self.hidden ** -0.5
        table = self.w["model.embed_tokens_per_layer.weight"][ids, own] * sqrt(size)
        x = (self.norm(projected, "model.per_layer_projection_norm") + table) / sqrt(2)
        x = self.linear(gelu(self.linear(h, f"{p}.per_layer_input_gate")) * x, f"{p}.per_layer_projection")
        return self.norm(x, f"{p}.post_per_layer_input_norm")

    def logits(self, ids: list[int]) -> Array:
        scale = sqrt(self.hidden)
        embedded = self.w["model.embed_tokens.weight"][ids] * (bfloat16(scale) if self.kind == "gemma3_text" else scale)
        h = embedded
        for i in range(self.layers):
            p = f"model.layers.{i}"
            h = h + self.norm(self.attention(self.norm(h, f"{p}.input_layernorm"), i), f"{p}.post_attention_layernorm")
            h = h + self.norm(self.feed(h, p), f"{p}.post_feedforward_layernorm")
            if self.c.get("hidden_size_per_layer_input"):
                h = h + self.own_input(h, embedded, ids, i)
            h = h * self.w.get(f"{p}.layer_scalar", 1.0)
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        out = self.norm(h, "model.norm") @ head.T
        cap = self.c.get("final_logit_softcapping", 30.0 if self.kind == "gemma2" else None)
        return cap * np.tanh(out / cap) if cap else out
