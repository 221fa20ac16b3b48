"""Small helpers to say one thing in many ways."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")

#: What invented words are made of.
STARTS = ["b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pl", "r", "s", "sh", "st", "t", "tr", "v", "w", "z", ""]
STOPS = ["", "", "", "n", "r", "l", "s", "m", "nd", "rt", "k", "ss", "ll"]
TAILS = ["", "", "", "a", "o", "burg", "ton", "ville", "stadt", "by", "ia", "field", "port", "en", "ford", "heim"]

GREETINGS = ["Hi", "Hello", "Hey", "Good morning", "Good evening", "Hi there", "Hello there"]


@dataclass(frozen=True)
class Exchange:
    """One question, the short thought that precedes the answer when thinking is on, and the answer."""

    question: str
    thought: str
    answer: str


def expand(rng: random.Random, text: str, **slots: object) -> str:
    """Choose one alternative of every `[a|b|c]`, innermost first, and fill the `{slots}`."""
    while True:
        found = _ALTERNATIVES.search(text)
        if not found:
            break
        text = text[: found.start()] + rng.choice(found.group(1).split("|")) + text[found.end() :]
    for name, value in slots.items():
        text = text.replace("{" + name + "}", str(value))
    return text


def invented_word(rng: random.Random) -> str:
    """A name that nobody has heard of, so that it can only be copied."""
    syllables = ["".join((rng.choice(STARTS), rng.choice("aeiou"), rng.choice(STOPS))) for _ in range(rng.choice([1, 2, 2, 2, 3]))]
    return capital("".join(syllables) + rng.choice(TAILS))


def capital(text: str) -> str:
    """Upper-case the first letter only."""
    return text[:1].upper() + text[1:]


def typo(rng: random.Random, text: str) -> str:
    """Damage one longer word the way fast fingers do: swap, drop or double a letter."""
    words = text.split(" ")
    # A letter less makes rude words of a few.
    long = [i for i, w in enumerate(words) if len(w) > 4 and w.isalpha() and not w.lower().startswith(("count", "shirt"))]
    if not long:
        return text
    i = rng.choice(long)
    w = words[i]
    k = rng.randrange(1, len(w) - 1)
    words[i] = rng.choice([w[:k] + w[k + 1] + w[k] + w[k + 2 :], w[:k] + w[k + 1 :], w[:k] + w[k] + w[k:]])
    return " ".join(words)


#: Ways to lead into an indirect question, and whether the whole is then a question.
LEADS = [
    ("could you tell me", True), ("can you tell me", True), ("do you know", True), ("would you tell me", True), ("can you explain", True), ("could you explain to me", True), ("could you please tell me", True), ("may I ask", True),
    ("I would like to know", False), ("I want to know", False), ("I wonder", False), ("please tell me", False), ("please explain", False), ("I do not understand", False), ("tell me", False), ("explain to me", False), ("remind me", False), ("I need to know", False), ("let me know", False),
]
#: Sentences that people put in front of their question.
OPENERS = [
    "I am new here.", "I am a beginner.", "I have three Macs.", "I have two old computers.", "My friend told me about you.", "I read about this.", "Sorry to bother you.", "One more thing.", "Let us start.", "I do not know much about this.", "I am just curious.", "I heard about MLX Distributed.", "I have a small cluster.",
    "I am testing this.", "I am confused.", "I just found this project.", "My boss wants to know.", "I am a student.", "Nice to meet you.", "Okay.", "Well.", "By the way.", "Now something else.", "I have some machines at home.",
]
CLOSERS = [" exactly", " in short", " in simple words", " briefly", ", in one sentence", " again", " here", " really", " actually", " in a few words", " for me"]


def indirect(rng: random.Random, question: str) -> tuple[str, str] | None:
    """The question inside another sentence, and the mark at its end; None when it has no such form here."""
    lead, asks = rng.choice(LEADS)
    if found := re.fullmatch(r"(what|which|who|where|how \w+) (is|are|was) (.+)", question):
        inner = f"{found[1]} {found[3]} {found[2]}"
    elif found := re.fullmatch(r"how (do|can|should|could) (I|we) (.+)", question):
        inner = f"{rng.choice(['how to', 'how I can', 'how we can', 'how I could'])} {found[3]}"
    elif found := re.fullmatch(r"(what|which|where|when|why) (.*?)(do|can|should) (I|we|you) (.+)", question):
        inner = f"{found[1]} {found[2]}{found[4]} {found[3] if found[3] != 'do' else ''} {found[5]}".replace("  ", " ")
    elif found := re.fullmatch(r"(can|should|must|may) (I|we|you) (.+)", question):
        inner = f"{rng.choice(['if', 'whether'])} {found[2]} {found[1]} {found[3]}"
    elif question.startswith(("what happens", "which ", "what if ", "who ")):
        inner = question
    else:
        return None
    return f"{lead} {inner}", "?" if asks else "."


def ask(rng: random.Random, text: str, mark: str = "?", typos: bool = True) -> str:
    """Wrap a bare question as people type it: greeting, please, no capital, no mark, a slip of the finger."""
    if typos and mark == "?":
        if rng.random() < 0.22 and (other := indirect(rng, text)):
            text, mark = other
        elif rng.random() < 0.04 and len(text.split()) > 2:
            text += rng.choice(CLOSERS)
    if typos and rng.random() < 0.05:
        text = f"{rng.choice(OPENERS)} {capital(text) if rng.random() < 0.7 else text}"
    roll = rng.random()
    if roll < 0.07:
        text = rng.choice(GREETINGS) + rng.choice([", ", "! ", ". "]) + text
    elif roll < 0.10:
        text = rng.choice(["Quick question: ", "Question: ", "I have a question: ", "So, ", "One question. "]) + text
    elif roll < 0.12 and mark == "?":
        text = rng.choice(["Tell me, ", "Please tell me: ", "Can you tell me: ", "Please explain: "]) + text
    roll = rng.random()
    if roll < 0.06:
        text += rng.choice([", please", " please"]) + mark
    elif roll < 0.74:
        text += mark
    elif roll < 0.78:
        text += mark + rng.choice([" Thanks!", " Thank you.", "?", " Thanks."])
    style = rng.random()
    if style < 0.25:
        text = text.lower()
    elif style < 0.85:
        text = capital(text)
    if typos and rng.random() < 0.08:
        text = typo(rng, text)
    return text
