"""Random configurations of every supported family, for live.py: family -> function of a random.Random."""

import random
from typing import Any

Config = dict[str, Any]


def common(r: random.Random, model_type: str, layers: tuple[int, int] = (2, 5)) -> Config:
    kv = r.choice([1, 2, 3])
    return {
        "model_type": model_type, "hidden_size": r.choice([64, 96, 128, 160, 192]),
        "num_hidden_layers": r.randint(*layers), "intermediate_size": r.choice([64, 96, 128, 192, 320]),
        "num_attention_heads": kv * r.choice([1, 2, 4]), "num_key_value_heads": kv,
        "head_dim": r.choice([16, 32, 64]), "vocab_size": r.choice([160, 203, 256]),
        "rms_norm_eps": r.choice([1e-5, 1e-6]), "max_position_embeddings": 4096,
        "rope_theta": r.choice([10000.0, 500000.0, 1e6]), "tie_word_embeddings": r.random() < 0.5,
    }


def rope_scaling(r: random.Random, kinds: list[str]) -> Config | None:
    kind = r.choice(kinds)
    key = r.choice(["type", "rope_type"])
    if kind == "none":
        return None
    if kind == "linear":
        return {key: kind, "factor": r.choice([2.0, 4.0])}
    if kind == "llama3":
        return {key: kind, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": r.choice([32, 64, 8192])}
    if kind == "yarn":
        out = {key: kind, "factor": r.choice([4.0, 40.0]), "original_max_position_embeddings": r.choice([64, 4096])}
        if r.random() < 0.5:
            out.update(beta_fast=16, beta_slow=1)
        if r.random() < 0.5:
            out.update(mscale=1.0, mscale_all_dim=r.choice([0.0, 0.707, 1.0]))
        return out
    if kind == "dynamic":
        return {key: kind, "factor": r.choice([2.0, 8.0])}
    if kind == "default":
        return {key: kind}
    raise ValueError(kind)


def llama(r: random.Random) -> Config:
    c = common(r, r.choice(["llama", "mistral"]))
    c.update(attention_bias=r.random() < 0.4, mlp_bias=r.random() < 0.3, rope_traditional=r.random() < 0.3,
             rope_scaling=rope_scaling(r, ["none", "linear", "llama3", "yarn", "dynamic", "default"]),
             max_position_embeddings=r.choice([32, 4096]))
    if r.random() < 0.4:
        kinds = ["sliding_attention", "full_attention"]
        c["layer_types"] = kinds[:c["num_hidden_layers"]] + [r.choice(kinds) for _ in range(c["num_hidden_layers"] - 2)]
        c["sliding_window"] = r.choice([8, 24])
    return c


def qwen2(r: random.Random) -> Config:
    c = common(r, "qwen2")
    c["hidden_size"] = c["num_attention_heads"] * c.pop("head_dim")
    c["rope_scaling"] = rope_scaling(r, ["none", "linear", "yarn"])
    return c


def qwen3(r: random.Random) -> Config:
    c = common(r, "qwen3")
    if r.random() < 0.3:
        c["rope_parameters"] = {"rope_theta": c.pop("rope_theta"), "rope_type": "default"}
    else:
        c["rope_scaling"] = rope_scaling(r, ["none", "yarn"])
    return c


def experts(r: random.Random, names: Config) -> Config:
    n = r.choice([4, 6, 8])
    return {names["n"]: n, names["k"]: r.randint(1, 3)}


def qwen3_moe(r: random.Random) -> Config:
    c = common(r, "qwen3_moe")
    c.update(experts(r, {"n": "num_experts", "k": "num_experts_per_tok"}), decoder_sparse_step=r.choice([1, 2]),
             mlp_only_layers=r.choice([[], [1]]), moe_intermediate_size=r.choice([32, 64, 96]),
             norm_topk_prob=r.random() < 0.5)
    return c


def gpt_oss(r: random.Random) -> Config:
    c = common(r, "gpt_oss", (2, 5))
    del c["tie_word_embeddings"]
    c.update(experts(r, {"n": "num_local_experts", "k": "num_experts_per_tok"}), sliding_window=r.choice([8, 16]),
             rope_theta=150000, rope_scaling=rope_scaling(r, ["none", "yarn"]))
    n = c["num_hidden_layers"]
    c["layer_types"] = (["sliding_attention", "full_attention"] * n)[:n]
    return c


def gemma2(r: random.Random) -> Config:
    c = common(r, "gemma2")
    del c["tie_word_embeddings"]
    c.update(query_pre_attn_scalar=r.choice([16.0, 144.0]), attn_logit_softcapping=r.choice([20.0, 50.0]),
             final_logit_softcapping=30.0, rope_traditional=r.random() < 0.2)
    return c


def gemma3_text(r: random.Random) -> Config:
    c = common(r, "gemma3_text", (3, 7))
    del c["tie_word_embeddings"]
    c.update(query_pre_attn_scalar=r.choice([16, 64, 256]), sliding_window=r.choice([8, 20]),
             sliding_window_pattern=r.choice([2, 3]), rope_local_base_freq=10000.0,
             rope_scaling=rope_scaling(r, ["none", "linear"]))
    return c


def gemma3(r: random.Random) -> Config:
    text = gemma3_text(r)
    return {"model_type": "gemma3", "vocab_size": text["vocab_size"], "text_config": text}


def gemma4_text(r: random.Random) -> Config:
    c = common(r, "gemma4_text", (4, 7))
    n = c["num_hidden_layers"]
    pattern = r.choice([2, 3])
    types = [("full_attention" if (i + 1) % pattern == 0 else "sliding_attention") for i in range(n)]
    moe = r.random() < 0.4
    c.update(tie_word_embeddings=True, layer_types=types, sliding_window=r.choice([8, 20]),
             sliding_window_pattern=pattern, global_head_dim=r.choice([32, 64, 128]),
             num_kv_shared_layers=r.choice([0, 0, n - pattern]), use_double_wide_mlp=r.random() < 0.5,
             hidden_size_per_layer_input=r.choice([0, 32, 128]), vocab_size_per_layer_input=c["vocab_size"],
             attention_k_eq_v=r.random() < 0.4, final_logit_softcapping=30.0, enable_moe_block=moe,
             rope_parameters={
                 "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
                 "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}})
    if c["attention_k_eq_v"]:
        c["num_global_key_value_heads"] = 1
    if moe:
        c.update(num_experts=6, top_k_experts=2, moe_intermediate_size=64)
    del c["rope_theta"]
    return c


def gemma4(r: random.Random) -> Config:
    text = gemma4_text(r)
    return {"model_type": "gemma4", "vocab_size": text["vocab_size"], "text_config": text}


def delta(r: random.Random) -> Config:
    key_heads = r.choice([1, 2])
    return {"linear_num_key_heads": key_heads, "linear_num_value_heads": key_heads * r.choice([1, 2, 4]),
            "linear_key_head_dim": r.choice([16, 32, 48]), "linear_value_head_dim": r.choice([16, 32]),
            "linear_conv_kernel_dim": r.choice([3, 4]), "full_attention_interval": r.choice([2, 4])}


def qwen3_next(r: random.Random) -> Config:
    c = common(r, "qwen3_next", (4, 6))
    c.update(delta(r))
    c.update(experts(r, {"n": "num_experts", "k": "num_experts_per_tok"}), decoder_sparse_step=1,
             mlp_only_layers=r.choice([[], [1]]), moe_intermediate_size=64, shared_expert_intermediate_size=96,
             norm_topk_prob=r.random() < 0.5, partial_rotary_factor=r.choice([0.25, 0.5]), head_dim=32)
    return c


def qwen3_5_text(r: random.Random) -> Config:
    c = common(r, "qwen3_5_text", (4, 6))
    c.update(delta(r), head_dim=32,
             rope_parameters={"rope_type": "default", "rope_theta": c.pop("rope_theta"), "mrope_section": [2, 1, 1],
                              "partial_rotary_factor": 0.25})
    return c


def qwen3_5(r: random.Random) -> Config:
    return {"model_type": "qwen3_5", "text_config": qwen3_5_text(r)}


def qwen3_5_moe(r: random.Random) -> Config:
    c = qwen3_5_text(r)
    c.update(experts(r, {"n": "num_experts", "k": "num_experts_per_tok"}), model_type="qwen3_5_moe_text",
             moe_intermediate_size=64, shared_expert_intermediate_size=96)
    return {"model_type": "qwen3_5_moe", "text_config": c}


def ministral3(r: random.Random) -> Config:
    c = common(r, "ministral3")
    c.update(rope_parameters={"rope_type": "yarn", "type": "yarn", "rope_theta": c.pop("rope_theta"), "factor": 16.0,
                              "original_max_position_embeddings": r.choice([16, 64]), "beta_fast": 32.0, "beta_slow": 1.0,
                              "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1})
    return c


def mistral3(r: random.Random) -> Config:
    text = ministral3(r) if r.random() < 0.6 else llama(r)
    text["model_type"] = "ministral3" if text["model_type"] == "ministral3" else "mistral"
    return {"model_type": "mistral3", "text_config": text}


def phi3(r: random.Random) -> Config:
    c = common(r, "phi3")
    c["hidden_size"] = c["num_attention_heads"] * c.pop("head_dim")
    d = c["hidden_size"] // c["num_attention_heads"]
    c["partial_rotary_factor"] = part = r.choice([0.5, 1.0])
    if r.random() < 0.6:
        half = int(d * part) // 2
        c.update(original_max_position_embeddings=64, max_position_embeddings=r.choice([64, 512]),
                 rope_scaling={"type": r.choice(["longrope", "su"]), "short_factor": [1.0] * half,
                               "long_factor": [1.0 + i / 4 for i in range(half)]})
    return c


def grouped(r: random.Random, c: Config) -> Config:
    groups = r.choice([1, 2, 4])
    c.update(n_routed_experts=8, num_experts_per_tok=r.randint(1, 3), n_group=groups, topk_group=max(1, groups // 2),
             n_shared_experts=r.choice([1, 2]), moe_intermediate_size=r.choice([32, 64]),
             first_k_dense_replace=r.choice([0, 1]), norm_topk_prob=r.random() < 0.7,
             routed_scaling_factor=r.choice([1.0, 1.8]), attention_bias=r.random() < 0.3)
    return c


def glm4_moe(r: random.Random) -> Config:
    c = grouped(r, common(r, "glm4_moe"))
    c.update(use_qk_norm=r.random() < 0.5, partial_rotary_factor=0.5, rope_scaling=None)
    return c


def mla(r: random.Random, c: Config) -> Config:
    heads = r.choice([2, 4])
    c.update(num_attention_heads=heads, num_key_value_heads=heads, q_lora_rank=r.choice([None, 64, 96]),
             kv_lora_rank=r.choice([32, 64, 128]), qk_rope_head_dim=r.choice([16, 32]),
             qk_nope_head_dim=r.choice([32, 64]), v_head_dim=r.choice([32, 64]))
    del c["head_dim"]
    return c


def glm4_moe_lite(r: random.Random) -> Config:
    c = mla(r, grouped(r, common(r, "glm4_moe_lite")))
    c["q_lora_rank"] = c["q_lora_rank"] or 64
    return c


def minimax(r: random.Random) -> Config:
    c = common(r, r.choice(["minimax", "minimax_m2"]))
    c.update(experts(r, {"n": "num_local_experts", "k": "num_experts_per_tok"}), rotary_dim=16,
             shared_intermediate_size=0, use_qk_norm=r.random() < 0.7)
    return c


def deepseek_v3(r: random.Random) -> Config:
    c = mla(r, grouped(r, common(r, r.choice(["deepseek_v3", "kimi_k2"]))))
    del c["tie_word_embeddings"]
    c.update(moe_layer_freq=1, rope_scaling=rope_scaling(r, ["none", "yarn"]))
    return c


FAMILIES = {f.__name__: f for f in (
    llama, qwen2, qwen3, qwen3_moe, phi3, gpt_oss, gemma2, gemma3_text, gemma3, gemma4_text, gemma4, qwen3_next,
    qwen3_5, qwen3_5_moe, ministral3, mistral3, glm4_moe, glm4_moe_lite, minimax, deepseek_v3)}
