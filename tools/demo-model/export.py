"""Write a trained checkpoint as an MLX repository: 8-bit affine weights in groups of 64, bfloat16 scales.

    python export.py --work build-demo --out ../../models/demo
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
import torch
from tokenizers import Tokenizer

from model import Config
from tokenizer import CONTROL, MARKERS

HERE = Path(__file__).parent
GROUP, BITS = 64, 8
LIMIT = 8_000_000


def write_json(path: Path, value: object) -> None:
    """Write JSON as MLX repositories have it: four spaces, one newline at the end."""
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def quantize(state: dict[str, torch.Tensor]) -> dict[str, mx.array]:
    """Every matrix to 8 bits as `mlx.core.quantize` does it (from bfloat16, like mlx-lm), vectors to bfloat16."""
    tensors: dict[str, mx.array] = {}
    for name, value in sorted(state.items()):
        array = mx.array(value.float().numpy()).astype(mx.bfloat16)
        if array.ndim == 2:
            path = name.removesuffix(".weight")
            tensors[name], tensors[path + ".scales"], tensors[path + ".biases"] = mx.quantize(array, GROUP, BITS)
        else:
            tensors[name] = array
    mx.eval(*tensors.values())
    return tensors


def export(state: dict[str, torch.Tensor], config: Config, tokenizer: Tokenizer, out: Path) -> int:
    """Write all files of the repository into `out` and return their size in bytes.

    Each file is written beside its place and then renamed, so that a program which loads the model meanwhile
    never reads half a file.
    """
    out.mkdir(parents=True, exist_ok=True)
    stage = out / ".new"
    stage.mkdir(exist_ok=True)

    tensors = quantize(state)
    mx.save_safetensors(str(stage / "model.safetensors"), tensors, metadata={"format": "mlx"})
    write_json(
        stage / "model.safetensors.index.json",
        {
            "metadata": {
                "total_size": sum(t.nbytes for t in tensors.values()),
                "total_parameters": sum(v.numel() for v in state.values()),
            },
            "weight_map": {name: "model.safetensors" for name in sorted(tensors)},
        },
    )

    end_of_text, end_of_turn = (tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>"))
    quantization = {"group_size": GROUP, "bits": BITS, "mode": "affine"}
    write_json(
        stage / "config.json",
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **asdict(config),
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": [end_of_turn, end_of_text],
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "pad_token_id": end_of_text,
            "quantization": quantization,
            "quantization_config": quantization,
            "rope_scaling": None,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "use_sliding_window": False,
        },
    )

    tokenizer.save(str(stage / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write_json(
        stage / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(t)): {"content": t, **flags, "special": t in CONTROL}
                for t in CONTROL + MARKERS
            },
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": None,
            "chat_template": (HERE / "chat_template.jinja").read_text(encoding="utf-8"),
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": config.max_position_embeddings,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": None,
        },
    )
    write_json(
        stage / "generation_config.json",
        {
            "do_sample": True,
            "eos_token_id": [end_of_turn, end_of_text],
            "pad_token_id": end_of_text,
            "temperature": 0.2,
            "top_k": 20,
            "top_p": 0.9,
        },
    )

    size = sum(f.stat().st_size for f in stage.iterdir())
    if size > LIMIT:
        raise ValueError(f"the repository has {size} bytes, more than {LIMIT}")
    for file in stage.iterdir():
        file.replace(out / file.name)
    stage.rmdir()
    return size


def main() -> None:
    """Export the checkpoint of a work folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder that train.py wrote")
    parser.add_argument("--out", type=Path, default=HERE.parent.parent / "models" / "demo")
    args = parser.parse_args()
    saved = torch.load(args.work / "checkpoint.pt", weights_only=True)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    size = export(saved["model"], Config(**saved["config"]), tokenizer, args.out)
    print(f"wrote {args.out}: {size} bytes, step {saved['step']}")


if __name__ == "__main__":
    main()
