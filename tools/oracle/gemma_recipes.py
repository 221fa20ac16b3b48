"""Tiny models of Gemma 2, 3 and 4 and of the wrappers, on top of expert_recipes.py."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from expert_recipes import FULL, MXFP4, MXFP8, NVFP4, SLIDING, FamilyRecipe, affine, yarn


@dataclass
class TextRecipe(FamilyRecipe):
    """`config` may hold a text_config. Towers that are not ours are there to be ignored."""

    has_head: bool = True
    towers: dict[str, tuple[int, ...]] = field(default_factory=dict)  # tensor -> shape

    @property
    def vocab(self) -> int:
        return self.config.get("vocab_size") or self.config["text_config"]["vocab_size"]

    @property
    def tied(self) -> bool:
        return not self.has_head

    @property
    def model_type(self) -> str:
        return self.config.get("text_config", self.config)["model_type"]

    def before_weights(self, model: Any) -> None:
        text = getattr(model, "language_model", model)
        if not self.has_head and "lm_head" in text:
            text.sanitize({})  # sees no head

    def after_saving(self, folder: Path) -> None:
        file = str(folder / "model.safetensors")
        if self.towers:
            more = {name: mx.ones(shape, mx.bfloat16) for name, shape in self.towers.items()}
            mx.save_safetensors(file, {**mx.load(file), **more}, metadata={"format": "mlx"})

    def weight(self, name: str, shape: tuple[int, ...], rng: np.random.RandomState) -> np.ndarray:
        """Norms behind a half of a layer are large, so that a tied model does not repeat its input."""
        if not self.model_type.startswith("gemma") or len(shape) > 1 and "per_layer.weight" not in name:
            return super().weight(name, shape, rng)
        noise = rng.standard_normal(shape)
        if len(shape) > 1:
            return 0.2 * noise
        if "layer_scalar" in name:
            return 1 + 0.1 * noise
        size = 6.0 if ".post_" in name else 0.8 if re.search(r"\.[qk]_norm", name) else 1.0
        return size * (1 + 0.25 * noise) - (self.model_type != "gemma4_text")


TOWERS = {"vision_tower.blocks.0.attn.qkv.weight": (24, 8), "multi_modal_projector.linear.weight": (16, 8)}


def common(model_type: str, hidden: int, layers: int, heads: int, kv: int, head: int, inter: int,
           **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv, "head_dim": head, "intermediate_size": inter, "vocab_size": 112,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, **more}


def gemma2(**more: Any) -> dict[str, Any]:
    return {"rope_theta": 10000, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **more}


def gemma3(pattern: int, window: int, **more: Any) -> dict[str, Any]:
    return {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": pattern,
            "sliding_window": window, "rope_scaling": None, **more}


def gemma4(types: list[str], window: int, **more: Any) -> dict[str, Any]:
    return {"layer_types": types, "sliding_window": window, "global_head_dim": 32, "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 112, "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True, "rope_parameters": {
                FULL: {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
                SLIDING: {"rope_type": "default", "rope_theta": 10000.0}}, **more}


def inner(config: dict[str, Any], *absent: str, **more: Any) -> dict[str, Any]:
    return {key: value for key, value in {**config, **more}.items() if key not in absent}


def mistral_rope(**more: Any) -> dict[str, Any]:
    return {**yarn(16.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0), "rope_type": "yarn",
            "rope_theta": 1000000.0, "llama_4_scaling_beta": 0.4, **more}


RECIPES = [
    TextRecipe("gemma2-capped", 301, "scores capped at 3, logits at 8; 3, 4 and 6 bits",
               common("gemma2", 64, 3, 4, 2, 16, 96, **gemma2(attn_logit_softcapping=3.0, final_logit_softcapping=8.0,
                                                              query_pre_attn_scalar=9.0)), has_head=False,
               quant=[("embed_tokens", affine(6, 64)), ("down_proj", affine(3, 32)), ("", affine(4, 64))]),
    TextRecipe("gemma2-plain", 302, "nothing quantised; caps and the scale of scores by default",
               inner(common("gemma2", 48, 3, 3, 3, 16, 48, **gemma2()), "attn_logit_softcapping",
                     "final_logit_softcapping", "rope_theta"), dtype="float16", has_head=False),
    TextRecipe("gemma3-window", 303, "windows of 12, every third layer full and stretched by 8; head tied without saying so",
               common("gemma3_text", 64, 6, 4, 2, 16, 64, **gemma3(3, 12, query_pre_attn_scalar=9, rope_scaling={
                   "rope_type": "linear", "factor": 8.0})), has_head=False,
               quant=[("embed_tokens", affine(8, 64)), ("v_proj|o_proj", NVFP4), ("mlp", MXFP4), ("", affine(5, 32))]),
    TextRecipe("gemma3-head", 304, "a head of its own, against the word of config.json; plain; one KV head",
               common("gemma3_text", 48, 4, 4, 1, 16, 48, **gemma3(2, 20, query_pre_attn_scalar=16, tie_word_embeddings=True))),
    TextRecipe("gemma3-wrapped", 305, "in gemma3, which says vocabulary and heads; other towers; 2, 3 and 8 bits",
               {"model_type": "gemma3", "vocab_size": 112, "text_config": inner(
                   common("gemma3_text", 64, 3, 8, 4, 16, 64, **gemma3(3, 16, query_pre_attn_scalar=12)),
                   "num_attention_heads", "num_key_value_heads", vocab_size=999)}, has_head=False, towers=TOWERS,
               quant=[("embed_tokens", affine(8, 32)), ("up_proj", affine(2, 32)), ("gate_proj", affine(3, 64)),
                      ("", affine(8, 64))]),
    TextRecipe("gemma4-shared", 306, "two layers read the K and V of others and are twice as wide; layers' own inputs",
               common("gemma4_text", 64, 6, 4, 1, 16, 32, **gemma4(
                   [SLIDING, FULL, SLIDING, FULL, FULL, SLIDING], 12, num_kv_shared_layers=2, use_double_wide_mlp=True,
                   hidden_size_per_layer_input=32)), has_head=False,
               quant=[("per_layer", affine(4, 32)), ("embed_tokens", affine(8, 64)), ("k_proj", MXFP8), ("", affine(6, 32))]),
    TextRecipe("gemma4-experts", 327, "V of full layers is K, with a KV head of their own; 5 experts, 2 a token; f16",
               common("gemma4_text", 64, 3, 4, 2, 16, 64, **gemma4(
                   [SLIDING, FULL, SLIDING], 24, attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True,
                   num_experts=5, top_k_experts=2, moe_intermediate_size=32)), dtype="float16", has_head=False,
               quant=[("embed_tokens", affine(8, 64)), (r"router\.proj", affine(8, 64)), (r"switch_glu\.down", affine(5, 32)),
                      ("switch_glu", affine(4, 64)), ("", affine(8, 32))]),
    TextRecipe("gemma4-wrapped", 308, "in gemma4 with other towers; the shared layers read the first ones, so it has no cut",
               {"model_type": "gemma4", "vocab_size": 112, "text_config": common("gemma4_text", 64, 4, 2, 2, 16, 32, **gemma4(
                   [SLIDING, FULL, SLIDING, FULL], 8, num_kv_shared_layers=2, use_double_wide_mlp=False,
                   hidden_size_per_layer_input=16, final_logit_softcapping=None))}, has_head=False,
               towers={**TOWERS, "audio_tower.conv.weight": (8, 4)}),
    TextRecipe("ministral3-yarn", 309, "yarn, queries that grow from position 16 on, windows of 20; untied",
               common("ministral3", 64, 4, 4, 2, 16, 64, layer_types=[FULL, SLIDING, SLIDING, FULL], sliding_window=20,
                      tie_word_embeddings=False, rope_parameters=mistral_rope()),
               quant=[("lm_head", False), ("mlp", affine(4, 32)), ("", affine(5, 64))]),
    TextRecipe("mistral3-wrapped", 310, "ministral3 in mistral3; other towers; mxfp8 and 8 bits; queries grow from 32 on",
               {"model_type": "mistral3", "text_config": common(
                   "ministral3", 64, 3, 2, 1, 32, 64, tie_word_embeddings=False,
                   rope_parameters=mistral_rope(original_max_position_embeddings=32))}, towers=TOWERS,
               quant=[("lm_head|embed_tokens", affine(8, 64)), ("", MXFP8)]),
    TextRecipe("mistral3-llama", 311, "mistral in mistral3, with llama3 RoPE; plain; tied by its word",
               {"model_type": "mistral3", "text_config": common(
                   "mistral", 48, 3, 3, 3, 16, 48, tie_word_embeddings=True, rope_theta=10000, rope_scaling={
                       "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0,
                       "high_freq_factor": 4.0})}, has_head=False),
]
