"""Small tokenizers, one per pattern family, and what the `tokenizers` library makes of awkward strings with them.

    python make_tokenizers.py [OUT]      OUT/<family>/{tokenizer.json, cases.json, decode.json}, OUT/stages.json
"""

import argparse
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from common import GOLDENS, versions, write_json, write_json_lines
from corpus import awkward_texts, training_lines
from stages import STAGE_TEXTS, STAGES

TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN3_5 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + TAIL)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def cased(contraction: str, digits: str) -> str:
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (f"{lead}{UPPER}*{LOWER}+{contraction}|{lead}{UPPER}+{LOWER}*{contraction}|{digits}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + TAIL)


O200K, TEKKEN = cased(CONTRACTION, r"\p{N}{1,3}"), cased("", r"\p{N}")
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*""" + TAIL,
]


@dataclass
class Family:
    name: str
    patterns: list[str]  # Split passes; none: ByteLevel's own (GPT-2) pattern
    special: list[str]
    vocab: int = 800
    bos: str | None = None  # added by a TemplateProcessing
    nfc: bool = False
    ignore_merges: bool = False
    plain_added: list[str] = field(default_factory=list)  # added, but not special
    flagged: list[AddedToken] = field(default_factory=list)
    merges_as_text: bool = False  # "a b" instead of ["a", "b"], as older files have them


THINK = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
FAMILIES = [
    Family("qwen", [QWEN], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], nfc=True, plain_added=THINK, vocab=900),
    Family("qwen3_5", [QWEN3_5], ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], nfc=True, plain_added=THINK, vocab=700),
    Family("llama3", [LLAMA3], ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
           bos="<|begin_of_text|>", ignore_merges=True, merges_as_text=True),
    Family("gpt2", [], ["<|endoftext|>"], vocab=600, merges_as_text=True),
    Family("o200k", [O200K], ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|start|>", "<|end|>", "<|channel|>", "<|message|>"]),
    Family("tekken", [TEKKEN], ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"], bos="<s>", ignore_merges=True, vocab=700),
    Family("deepseek_v3", DEEPSEEK, ["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"],
           bos="<\uff5cbegin\u2581of\u2581sentence\uff5c>", plain_added=["<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"]),
    Family("added_flags", [QWEN], ["<|endoftext|>"], nfc=True, vocab=600, flagged=[
        AddedToken("<L>", lstrip=True, special=True, normalized=False), AddedToken("<R>", rstrip=True, special=True, normalized=False),
        AddedToken("<LR>", lstrip=True, rstrip=True, normalized=False), AddedToken("word", single_word=True, normalized=False),
        AddedToken("caf\u00e9", normalized=True), AddedToken("<a>", normalized=False), AddedToken("<a><b>", normalized=False)]),
]
NOT_REACHED_BY_MERGES = ["unreachable", "\u0120unreachable"]


def train(tokenizer: Tokenizer, vocab: int, special: list[str], alphabet: list[str]) -> dict[str, Any]:
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(training_lines(), trainer)
    return json.loads(tokenizer.to_str())


def byte_level(family: Family) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if family.nfc:
        tokenizer.normalizer = normalizers.NFC()
    if family.patterns:
        splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in family.patterns]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            splits + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    spec = train(tokenizer, family.vocab, [], sorted(pre_tokenizers.ByteLevel.alphabet()))
    model = spec["model"]
    if family.ignore_merges:
        model["ignore_merges"] = True
        for word in NOT_REACHED_BY_MERGES:
            model["vocab"].setdefault(word, len(model["vocab"]))
    if family.merges_as_text:
        model["merges"] = [" ".join(pair) for pair in model["merges"]]

    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in family.special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in family.plain_added] + family.flagged)
    byte_post = processors.ByteLevel(trim_offsets=False)
    if family.bos:
        bos_id = tokenizer.token_to_id(family.bos)
        template = processors.TemplateProcessing(
            single=f"{family.bos} $A", pair=f"{family.bos} $A {family.bos}:1 $B:1", special_tokens=[(family.bos, bos_id)])
        tokenizer.post_processor = processors.Sequence([byte_post, template])
    else:
        tokenizer.post_processor = byte_post
    return tokenizer


@dataclass
class Spm:
    """SentencePiece's shape: spaces become U+2581, unknown characters become byte tokens."""

    name: str
    spaces: str  # who writes the marks: "prepend" (Llama 2), "replace" (Gemma), "metaspace" (Mistral v3)
    special: list[str] = field(default_factory=list)
    rstrip: bool = False  # of the special tokens, as in Phi-3
    plain_added: list[str] = field(default_factory=list)


SPM_FAMILIES = [
    Spm("spm", "prepend"),
    Spm("gemma", "replace", ["<start_of_turn>", "<end_of_turn>"], plain_added=["\n\n", "\n\n\n", "\t\t"]),
    Spm("phi3", "prepend", ["<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"], rstrip=True),
    Spm("mistral", "metaspace", ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"]),
]


def spm_stages(tokenizer: Tokenizer, spaces: str) -> None:
    replace = normalizers.Replace(" ", "\u2581")
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spaces == "replace":
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        parts.append(decoders.Strip(content=" ", left=1, right=0))
    if spaces == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace])
    if spaces == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(parts)


def sentencepiece_like(family: Spm) -> Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    spec = train(trained, 600, [], [])
    keep = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    rare = set("\u4e16\u754c\U0001f680\U0001f525\u0416")  # left to the byte tokens
    words = [w for w in spec["model"]["vocab"] if not rare & set(w)]
    vocab = {w: i for i, w in enumerate(dict.fromkeys(keep + words + ["\u2581"]))}
    merges = [m for m in spec["model"]["merges"] if not rare & set("".join(m))]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(m) for m in merges], unk_token="<unk>", fuse_unk=True,
                                     byte_fallback=True))
    spm_stages(tokenizer, family.spaces)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in keep[:3]])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True, rstrip=family.rstrip) for t in family.special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in family.plain_added])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocab["<s>"])])
    return tokenizer


def texts_with(tokens: list[str]) -> list[str]:
    """Added tokens inside text, glued, repeated, cut and doubled."""
    texts = []
    for t in tokens:
        texts += [t, f"a{t}b", f" {t} ", f"x {t}\n", t + t, f"{t}'s", t[:-1], t[1:], f"{t[0]}{t}"]
    texts += ["".join(tokens), " ".join(tokens), "\n".join(tokens), "".join(t.upper() for t in tokens)]
    return texts


FLAG_TEXTS = ["a  <L>  b", "a  <R>  b", "a \n <LR> \n b", "a<L>b", "<R>", "  <L>", "<LR>  ", "word", "a word b", "words", "password", "word.", "_word",
              "word1", "\u00e9word", "word word", "cafe\u0301", "un caf\u00e9 noir", "cafe\u0301s", "CAF\u00c9", "<a>", "<a><b>", "<a><a><b>", "<a><b", "<b>", "a <a> b <a><b>"]


def cases(tokenizer: Tokenizer, texts: list[str]) -> list[dict[str, Any]]:
    rows = []
    for text in dict.fromkeys(texts):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append({"text": text, "ids": ids, "ids_special": tokenizer.encode(text, add_special_tokens=True).ids,
                     "decoded": tokenizer.decode(ids, skip_special_tokens=False)})
    return rows


def random_decodes(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Ids no text gives: cut and invalid UTF-8 inside."""
    rng, size = random.Random(5), tokenizer.get_vocab_size()
    rows = []
    for i in range(60):
        ids = [rng.randrange(size if i % 2 else min(size, 300)) for _ in range(rng.randrange(1, 12))]
        rows.append({"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                     "decoded_skip_special": tokenizer.decode(ids, skip_special_tokens=True)})
    return rows


def save(folder: Path, tokenizer: Tokenizer, texts: list[str], merges_as_text: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    spec = json.loads(tokenizer.to_str())
    if merges_as_text:
        spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    write_json(folder / "tokenizer.json", spec, indent=None)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = cases(tokenizer, texts)
    head: dict[str, Any] = {"versions": versions("tokenizers"), "family": folder.name}
    write_json_lines(folder / "cases.json", head, "cases", rows)
    write_json_lines(folder / "decode.json", head, "cases", random_decodes(tokenizer))
    print(f"{folder.name:12s} vocab {tokenizer.get_vocab_size()}  {len(rows)} cases")


def save_stages(path: Path) -> None:
    rows = []
    for name, spec in STAGES.items():
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokens = [t["content"] for t in spec["added_tokens"]]
        rows.append({"name": name, "tokenizer": spec, "cases": cases(tokenizer, STAGE_TEXTS + texts_with(tokens)[:24])})
    write_json_lines(path, {"versions": versions("tokenizers")}, "stages", rows)
    print(f"{len(rows)} stages, {sum(len(r['cases']) for r in rows)} cases")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=GOLDENS / "tokenizers")
    out = parser.parse_args().out
    for family in FAMILIES:
        tokens = family.special + family.plain_added
        texts = awkward_texts() + texts_with(tokens) + (FLAG_TEXTS if family.flagged else [])
        save(out / family.name, byte_level(family), texts, family.merges_as_text)
    for spm in SPM_FAMILIES:
        save(out / spm.name, sentencepiece_like(spm), awkward_texts() + texts_with(["<s>", "</s>"] + spm.special + spm.plain_added))
    save_stages(out / "stages.json")


if __name__ == "__main__":
    main()
