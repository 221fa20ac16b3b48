"""Tiny tokenizers, one stage or option each: what repositories put around their vocabularies, and what engines spell differently."""

from typing import Any

Spec = dict[str, Any]
LETTERS = "abcdeABCxyz .,!'-_0123\n\t\u2581\u00e9\u00c9\u0301\u4e16\u00bd\u00a0\u03a3\u03c2\u01c5\u00df"
WORDS = ["ab", "abc", " a", "\u2581a", "\u2581ab", "\u2581\u2581", "  ", "12", "123", "\u0301\u00e9", "\n\n", "bc", "a ", "!!"]
PAIRS = [["a", "b"], ["ab", "c"], [" ", "a"], ["\u2581", "a"], ["\u2581a", "b"], ["\u2581", "\u2581"], [" ", " "], ["1", "2"], ["12", "3"], ["\u0301", "\u00e9"],
         ["\n", "\n"], ["b", "c"], ["a", " "], ["!", "!"]]
STAGE_TEXTS = ["", " ", "  ", "a", " a", "a ", "  ab  abc ", "ab abc\nab\n\nabc", "\u00e9\u0301 e\u0301 \u00c9", "12 123 0.1!!", "a'b-c_d", "\u2581a \u2581\u2581ab", "ABC \u03a3\u03c2 \u01c5\u00df", "\ta\u00a0b\t",
               "\u4e16a\u4e16 \u4e16", "\u00bd1\u00bdx", "zzz q#q", "q \U0001f600\u2003#", "aabbcc abcabc", "a,b.c!a", "   \n   a   ", "abcab<s>abc", "\u0301a", "a\u0301\u0316", "x\u24d0y\u2460", "\u200da\u200c", "a\u180eb\u0085c"]


def spec(added: list[Spec] | None = None, **parts: Any) -> Spec:
    """unk_token <unk>, no stage; `parts` are members of tokenizer.json or of its model."""
    vocab = {t: i for i, t in enumerate(["<unk>", *LETTERS, *WORDS])}
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
             "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": PAIRS}
    whole: Spec = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added or [], "normalizer": None, "pre_tokenizer": None,
                   "post_processor": None, "decoder": None}
    for name, value in parts.items():
        (model if name in model else whole)[name] = value
    return {**whole, "model": model}


def bytes_too(**parts: Any) -> Spec:
    """As above with a token for each byte."""
    out = spec(**parts, byte_fallback=True)
    for b in range(256):
        out["model"]["vocab"].setdefault(f"<0x{b:02X}>", len(out["model"]["vocab"]))
    return out


def token(text: str, id_: int, **flags: bool) -> Spec:
    return {"id": id_, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False} | flags


def split(pattern: str, behavior: str = "Isolated", invert: bool = False, kind: str = "Regex") -> Spec:
    return spec(pre_tokenizer={"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert})


def normalizer(*stages: Spec) -> Spec:
    return bytes_too(normalizer=stages[0] if len(stages) == 1 else {"type": "Sequence", "normalizers": list(stages)})


def pre(*stages: Spec) -> Spec:
    return spec(pre_tokenizer=stages[0] if len(stages) == 1 else {"type": "Sequence", "pretokenizers": list(stages)})


def decoder(*stages: Spec) -> Spec:
    return bytes_too(decoder=stages[0] if len(stages) == 1 else {"type": "Sequence", "decoders": list(stages)})


def metaspace(scheme: str, cut: bool = True) -> Spec:
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": cut}


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
UNREPLACE = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
STRIP_ONE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
FALLBACK, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}
BEHAVIORS = ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
VOCAB = spec()["model"]["vocab"]
N = len(VOCAB)

# Patterns that Oniguruma and PCRE2 read differently, or that are empty somewhere.
PATTERNS = [r"\w", r"\W+", r"[\w]+", r"[^\w]+", r"[^\W\d]+", r"\b", r"\B", r"\s", r"\S+", r"[^\S\n]+", r"\h+", r"[\h]", r"\H", r"\d+", r"(?=a)", r"a*", r"$", r"^", r"\u00e9",
            r"[[:punct:]]", r"[[:upper:]]", r"[[:digit:]]+", r"[a-z&&[^aeiou]]+", r"[\p{L}&&[^\p{Han}]]+", r"\p{Han}", r"[ab[xy]1]+", r"[]a]+", r"a{,2}b", r"(?i:AB)", r"(?i)\u00c9", r".", r"\s+(?!\S)|\s",
            r"[a-c-]+", r"(?<=a)b", r"a++b", r"[^\]\[]+"]

STAGES: dict[str, Spec] = {
    **{f"split {p}": split(p) for p in PATTERNS},
    **{f"split {b}{' invert' * i}": split(r"a|b", b, bool(i)) for b in BEHAVIORS for i in (0, 1)},
    **{f"split string {b}": split("ab", b, kind="String") for b in BEHAVIORS},
    **{f"metaspace {s} {cut}": pre(metaspace(s, cut)) for s in ("always", "first", "never") for cut in (True, False)},
    **{f"punctuation {b}": pre({"type": "Punctuation", "behavior": b}) for b in BEHAVIORS},
    **{f"digits {i}": pre({"type": "Digits", "individual_digits": i}) for i in (True, False)},
    "white space": pre({"type": "WhitespaceSplit"}),
    "white space, metaspace": pre({"type": "WhitespaceSplit"}, metaspace("always")),
    "digits, punctuation, metaspace": pre({"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Isolated"}, metaspace("first")),
    **{n: normalizer({"type": n}) for n in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")},
    "NFD, StripAccents, Lowercase": normalizer({"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}),
    **{f"strip {a} {b}": normalizer({"type": "Strip", "strip_left": a, "strip_right": b}) for a, b in ((True, True), (True, False), (False, True))},
    "prepend": normalizer({"type": "Prepend", "prepend": "\u2581"}),
    "prepend, replace": normalizer({"type": "Prepend", "prepend": "\u2581"}, REPLACE),
    "replace regex": normalizer({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581\u2581"}),
    "replace empty matches": normalizer({"type": "Replace", "pattern": {"Regex": "b*"}, "content": "-"}),
    "replace by nothing": normalizer({"type": "Replace", "pattern": {"String": "a"}, "content": ""}),
    "fuse_unk": spec(fuse_unk=True),
    "no unk": spec(unk_token=None),
    "bytes": bytes_too(),
    "bytes, ignore_merges": bytes_too(ignore_merges=True),
    "ignore_merges": spec(ignore_merges=True, merges=[]),
    "decode llama 2": decoder(UNREPLACE, FALLBACK, FUSE, STRIP_ONE),
    "decode gemma": decoder(UNREPLACE, FALLBACK, FUSE),
    **{f"decode metaspace {s}": decoder(metaspace(s)) for s in ("always", "first", "never")},
    "decode fuse": decoder(FUSE),
    "decode bytes": decoder(FALLBACK),
    "decode replace regex": decoder({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "x"}, FUSE),
    "decode strip three": decoder(FUSE, {"type": "Strip", "content": "a", "start": 3, "stop": 0}),
    "token of spaces strips itself": spec([token("  ", VOCAB["  "], lstrip=True, rstrip=True), token("<s>", N, special=True)]),
    "strips overlap": spec([token("<s>", N, rstrip=True), token("x", VOCAB["x"], lstrip=True), token("</s>", N + 1, lstrip=True, rstrip=True)]),
    "single words": spec([token("ab", VOCAB["ab"], single_word=True), token("\u00e9", VOCAB["\u00e9"], single_word=True), token("\u2460", N, single_word=True)]),
    "tokens in normal form": spec([token("\u00e9", VOCAB["\u00e9"], normalized=True), token("A b", N, normalized=True), token("ab", VOCAB["ab"])],
                                  normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
    "stripped token, metaspace decoder": spec([token(" x", N, normalized=True), token("\u2581y", N + 1)], decoder=metaspace("always"),
                                              normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
    "longest of many": spec([token(t, N + i) for i, t in enumerate(["<a", "<ab", "<abc>", "<ab>c", "c>"])]),
}
