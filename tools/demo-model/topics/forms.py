"""Answers of a given form: counting, repeating, JSON; and what to say to noise and to other languages."""

from __future__ import annotations

import json
import random
from typing import Any

from .facts import CAPITALS, COLOURS, WORDS
from .phrasing import Exchange, ask, capital, expand, invented_word
from .stories import FILLERS, HEROES, NAMES
from .tools import CITIES, ITEMS, NOUNS, person, place, thing

NOISE = "I did not understand that. Ask me about MLX Distributed, a small sum or a short story."
ENGLISH = "I speak only simple English."

FOREIGN = ["Guten Tag", "Wie geht es dir?", "Was ist das?", "Wer bist du?", "Bonjour", "Comment allez-vous?", "Qui es-tu?", "Hola", "Como estas?", "Quien eres?", "Ciao", "Come stai?", "Chi sei?", "Olá, tudo bem?", "Hej, hur mår du?", "Czesc", "Привет", "Как дела?", "Кто ты?", "你好", "你是谁?", "こんにちは", "元気ですか", "안녕하세요", "Γεια σου", "مرحبا", "नमस्ते", "Schönen Tag", "Erzähl mir eine Geschichte", "Raconte une histoire", "Danke schön", "Merci beaucoup", "Gracias", "Was ist MLX Distributed?", "Qué es MLX Distributed?", "Wie spät ist es?", "Où est la gare?", "何ですか", "Ça va?", "Grüß Gott"]


def counting(rng: random.Random) -> Exchange:
    """Count to a number in digits: long answers that are easy to follow in a stream."""
    last = rng.choice([12, 15, 20, 20, 25, 30, 40, 50, 100, rng.randint(11, 60)])
    first = 1 if rng.random() < 0.8 else rng.randint(2, 10)
    form = "[count|please count|can you count|count up|list the numbers] from {a} to {b}" if first > 1 else "[count to {b}|please count to {b}|can you count to {b}|count from 1 to {b}|count from one to {b}|list the numbers from 1 to {b}|count up to {b}]"
    question = expand(rng, form, a=first, b=last)
    mark = "?" if question.startswith("can") else rng.choice([".", "", ", please."])
    return Exchange(ask(rng, question, mark), f"I count from {first} to {last}.", ", ".join(str(i) for i in range(first, last + 1)) + ".")


def repeating(rng: random.Random) -> Exchange:
    """Say what the user says."""
    text = rng.choice([
        lambda: invented_word(rng), lambda: " ".join(invented_word(rng) for _ in range(rng.randint(1, 4))), lambda: " ".join(invented_word(rng).lower() for _ in range(rng.randint(1, 5))),
        lambda: rng.choice(NAMES), lambda: rng.choice(ITEMS), lambda: " ".join(rng.sample(NOUNS + ITEMS, rng.randint(1, 5))), lambda: expand(rng, rng.choice(FILLERS), n=rng.choice(NAMES)), lambda: rng.choice(["ok", "yes", "no", "hello", "banana", "test", "done", "OK", "Hello, world!", "pong", "red", "one"]),
        lambda: " ".join(str(rng.randint(0, 99)) for _ in range(rng.randint(1, 5))), lambda: rng.choice(CITIES), lambda: f"The {rng.choice(ITEMS)} is {rng.choice(list(COLOURS.values()))}.",
    ])()
    question = rng.choice(["repeat after me: {t}", "say {t}", "say \"{t}\"", "repeat: {t}", "please repeat: {t}", "please say: {t}", "write {t}", "say only {t}", "echo {t}", "repeat this: {t}", "just say {t}", "reply with {t}", "answer with {t}", "reply with exactly: {t}", "say the word {t}"]).replace("{t}", text)
    return Exchange(rng.choice([str, capital])(question), "I will say the same.", text)


def structured(rng: random.Random) -> Exchange:
    """A JSON object with the keys that the user names."""
    makers: dict[str, Any] = {
        "name": lambda: rng.choice(NAMES), "city": lambda: rng.choice(CITIES), "country": lambda: rng.choice(list(CAPITALS)).removeprefix("the "), "age": lambda: rng.randint(1, 99), "colour": lambda: rng.choice(list(COLOURS.values())), "color": lambda: rng.choice(list(COLOURS.values())), "animal": lambda: rng.choice(HEROES)[0],
        "price": lambda: rng.randint(1, 99), "item": lambda: rng.choice(ITEMS), "count": lambda: rng.randint(1, 20), "ok": lambda: rng.random() < 0.5, "answer": lambda: rng.choice(["yes", "no"]), "tags": lambda: rng.sample(ITEMS, rng.randint(1, 3)), "numbers": lambda: [rng.randint(0, 9) for _ in range(rng.randint(1, 4))],
        "title": lambda: capital(rng.choice(ITEMS)), "id": lambda: rng.randint(1, 999), "temperature": lambda: rng.randint(-9, 35), "capital": lambda: rng.choice(list(CAPITALS.values())), "friends": lambda: rng.sample(NAMES, 2), "done": lambda: rng.random() < 0.5, "email": lambda: f"{rng.choice(NAMES).lower()}@example.com", "date": lambda: f"20{rng.randint(10, 30)}-0{rng.randint(1, 9)}-{rng.randint(10, 28)}",
        "size": lambda: rng.choice(["small", "large"]), "year": lambda: rng.randint(1900, 2030), "is_open": lambda: rng.random() < 0.5, "result": lambda: rng.randint(0, 99),
    }
    keys = rng.sample(list(makers), rng.choice([1, 2, 2, 3, 4]))
    listed = keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + " and " + keys[-1]
    question = expand(rng, "[give me|write|make|return|I need|reply with|answer with|create|show me] [a JSON object|JSON|an object in JSON|some JSON|a person as JSON|an example in JSON] with [the keys |the fields ||]{k}", k=listed)
    if rng.random() < 0.15:
        question = expand(rng, "[give me|write|make] [a JSON object|some JSON|an example of JSON]")
    value = {key: makers[key]() for key in keys}
    return Exchange(capital(question) + rng.choice(["", "."]), f"The user wants JSON with {listed}.", json.dumps(value))


def filled(rng: random.Random) -> Exchange:
    """A JSON object or list of the values that the user gives: nothing but copying between quotes."""
    values: list[Any] = [rng.choice([person, place, thing, lambda r: r.randint(0, 999)])(rng) for _ in range(rng.randint(2, 6))]
    if rng.random() < 0.5:
        listed = ", ".join(map(str, values))
        question = expand(rng, "[make|write|give me|I need|] [a JSON list|a list in JSON|JSON] [of|with|from] {v}", v=listed)
        return Exchange(capital(question.strip()), "The user gives the values of a list.", json.dumps(values, ensure_ascii=False))
    keys = rng.sample(["name", "city", "item", "id", "place", "user", "room", "state", "location", "count", "title", "from", "to", "owner", "text", "street"], len(values))
    form = rng.choice(["{k} {v}", "{k}: {v}", "{k} is {v}", "{k} = {v}"])
    listed = ", ".join(form.replace("{k}", k).replace("{v}", str(v)) for k, v in zip(keys, values))
    question = expand(rng, "[make|write|give me|I need|] [a JSON object|an object in JSON|JSON] [with|from|where] {v}", v=listed)
    return Exchange(capital(question.strip()), "The user gives the keys and the values.", json.dumps(dict(zip(keys, values)), ensure_ascii=False))


def noise(rng: random.Random) -> Exchange:
    """Random letters, signs or words, or another language."""
    roll = rng.random()
    if roll < 0.3:
        return Exchange(rng.choice(FOREIGN), "This is not English.", ENGLISH)
    if roll < 0.6:
        text = " ".join("".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9))) for _ in range(rng.randint(1, 6)))
    elif roll < 0.75:
        text = "".join(rng.choice("!?#$%&*+-/<>=@^_~.,;:()[]{}|0123456789") for _ in range(rng.randint(2, 14)))
    elif roll < 0.85:
        text = rng.choice(["😀", "🙂🙂", "👍👍👍", "🚀", "❤️", "🤖🤖", "…", "—", "αβγ", "ÄÖÜ", "日", "½ ¾", "©®", "🎉 🎉", "→ ←"])
    else:
        word = rng.choice(NOUNS + ITEMS + WORDS)
        text = rng.choice([" ".join([word] * rng.randint(3, 40)), " ".join(rng.sample(NOUNS + ITEMS, rng.randint(3, 20)))])
    return Exchange(text, "This makes no sense to me.", NOISE)


def exchange(rng: random.Random) -> Exchange:
    """One exchange whose answer has a given form."""
    return rng.choices([counting, repeating, structured, filled, noise], [0.1, 0.2, 0.1, 0.5, 0.1])[0](rng)
