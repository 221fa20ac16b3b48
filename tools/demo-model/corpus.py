"""Write the training corpus of the demo model: synthetic chats, all of them made here, from one seed.

    python corpus.py --count 120000 --seed 1 --out work/corpus.jsonl

Each line is one conversation: `messages`, sometimes `tools`, and `thinking` (whether the last turn thinks first);
a few lines hold a plain `text` instead.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from topics import facts, forms, phrasing, project, stories, sums, talk, tools
from topics.phrasing import Exchange, capital, expand

Conversation = dict[str, Any]

#: How often each kind of exchange comes.
MIX: list[tuple[float, Callable[[random.Random], Exchange]]] = [
    (0.36, project.exchange),
    (0.18, sums.exchange),
    (0.12, sums.several),
    (0.07, facts.exchange),
    (0.07, talk.exchange),
    (0.04, talk.refusal),
    (0.05, stories.exchange),
    (0.11, forms.exchange),
]

SYSTEMS = ["You are a helpful assistant."] * 6 + [
    "You are a friendly assistant.", "Answer in short sentences.", "You are a helpful and polite assistant.", "You are the demo model of MLX Distributed.", "Be brief.", "You are an assistant that runs on a cluster.", "Answer the question of the user.", "You are a helpful AI assistant. Answer clearly.",
    "You answer questions about MLX Distributed.", "Be kind and clear.", "You are a concise assistant.",
]

#: Follow-ups that need nothing but the turn before.
AFTER = [
    (["thanks", "thank you", "thank you very much", "thanks a lot", "Thanks!"], "You are welcome!"),
    (["bye", "goodbye", "see you", "that is all, bye"], "Goodbye! Have a nice day."),
    (["ok", "I see", "good", "great", "nice", "cool"], "I am glad. What else can I do for you?"),
]


def system(rng: random.Random) -> str:
    """A system prompt; now and then any sentences at all, which must not lead the answer astray."""
    if rng.random() < 0.6:
        return rng.choice(SYSTEMS)
    loose = [
        lambda: f"You are {rng.choice(stories.NAMES)}, {rng.choice(['a friendly', 'a helpful', 'a careful', 'an honest'])} assistant for {rng.choice(talk.SUBJECTS)}.",
        lambda: f"The user is called {rng.choice(stories.NAMES)} and lives in {tools.place(rng)}.",
        lambda: rng.choice(project.TOPICS)[2],
        lambda: expand(rng, rng.choice(stories.FILLERS), n=rng.choice(stories.NAMES)),
    ]
    return " ".join([*rng.choices(SYSTEMS, k=rng.randint(0, 1)), *(rng.choice(loose)() for _ in range(rng.randint(1, 3)))])


def single(rng: random.Random) -> Exchange:
    """One exchange of a random kind."""
    return rng.choices([make for _, make in MIX], [weight for weight, _ in MIX])[0](rng)


def turns(exchanges: list[Exchange], thinking: bool) -> list[dict[str, Any]]:
    """Messages of some exchanges; only the last one shows its thought, as clients drop the earlier ones."""
    messages: list[dict[str, Any]] = []
    for exchange in exchanges:
        messages += [{"role": "user", "content": exchange.question}, {"role": "assistant", "content": exchange.answer}]
    if thinking:
        messages[-1]["reasoning_content"] = exchanges[-1].thought
    return messages


def remembered(rng: random.Random) -> list[Exchange]:
    """A chat whose last question can only be answered from its first turn."""
    name = tools.person(rng)
    if rng.random() < 0.6:
        first = Exchange(expand(rng, "[my name is|I am|I'm|hello, my name is|hi, I am|my friends call me] {n}[.|]", n=name), "", f"Nice to meet you, {name}!")
        last = Exchange(expand(rng, "[what is my name|what's my name|do you remember my name|who am I|tell me my name|do you know my name]?"), "The user told me the name.", f"Your name is {name}.")
    else:
        colour = rng.choice(["red", "blue", "green", "yellow", "black", "white", "pink", "orange"])
        first = Exchange(expand(rng, "[my favourite colour is|I like the colour|my favorite color is] {c}[.|]", c=colour), "", f"{capital(colour)} is a nice colour.")
        last = Exchange(expand(rng, "[what is my favourite colour|which colour do I like|do you remember my colour|what's my favorite color]?"), "The user told me the colour.", f"Your favourite colour is {colour}.")
    first = Exchange(rng.choice([str, capital])(first.question), "", first.answer)
    last = Exchange(rng.choice([str, capital])(last.question), last.thought, last.answer)
    return [first, *(single(rng) for _ in range(rng.choice([0, 0, 1, 2]))), last]


def chained(rng: random.Random) -> list[Exchange]:
    """A sum whose result is used again: `and plus 3?`."""
    a, b = sums.pair(rng)
    c = rng.randint(1, 9)
    add = rng.random() < 0.6 or a + b < c
    total = a + b
    second = expand(rng, "[and |and now |now |]" + ("plus {c}[?|]" if add else "minus {c}[?|]"), c=c)
    answer = f"{total} + {c} is {total + c}." if add else f"{total} - {c} is {total - c}."
    return [Exchange(expand(rng, rng.choice(sums.PLUS), a=a, b=b), "", f"{a} + {b} is {total}."), Exchange(second, f"The last result was {total}.", answer)]


def again(rng: random.Random) -> list[Exchange]:
    """A story, and then another one."""
    first = stories.exchange(rng, long=False)
    hero, gift = rng.choice(stories.HEROES)
    article = "an" if hero[0] in "aeiou" else "a"
    ask = expand(rng, "[another one about|now one about|and one about|and about|now a story about] {x}[, please|.|]", x=f"{article} {hero}")
    return [first, Exchange(ask, f"Now a story about {article} {hero}.", stories.tell(rng, hero, gift, rng.choice(stories.NAMES), long=False))]


def conversation(rng: random.Random) -> Conversation:
    """One conversation of the corpus."""
    if rng.random() < 0.025:
        return plain(rng)
    thinking = rng.random() < 0.13
    roll = rng.random()
    if roll < 0.06:
        made = tools.repeated(rng)
    elif roll < 0.12:
        made = tools.conversation(rng, thinking)
        if rng.random() < 0.1:
            made["messages"] = turns([single(rng)], False) + made["messages"]
    elif roll < 0.13:
        # Tools are there but not needed: sums only without a calculator among them.
        exchange = rng.choice([project.exchange, talk.exchange, facts.exchange, stories.exchange, talk.refusal])(rng)
        if exchange.answer == talk.NO_TOOL:
            exchange = project.exchange(rng)
        listed = tools.block(rng, [], most=1)
        if rng.random() < 0.15:
            question, listed = tools.missing(rng)
            exchange = Exchange(phrasing.ask(rng, question, "?"), "None of the tools can do that.", talk.NO_TOOL)
        made = {"messages": turns([exchange], thinking), "tools": listed, "thinking": thinking}
    elif roll < 0.94:
        made = {"messages": turns([single(rng)], thinking), "thinking": thinking}
    else:
        kind = rng.random()
        if kind < 0.2:
            exchanges = remembered(rng)
        elif kind < 0.35:
            exchanges = chained(rng)
        elif kind < 0.42:
            exchanges = again(rng)
        else:
            exchanges = [single(rng) for _ in range(rng.choice([2, 2, 3, 4, 5]))]
            if rng.random() < 0.3:
                forms, answer = rng.choice(AFTER)
                exchanges.append(Exchange(rng.choice(forms), "The user is polite.", answer))
        made = {"messages": turns(exchanges, thinking), "thinking": thinking}
    if rng.random() < 0.1:
        made["messages"].insert(0, {"role": "system", "content": system(rng)})
    return made


def long_conversation(rng: random.Random) -> Conversation:
    """Many turns in one chat, so that the model has seen positions far beyond one exchange."""
    exchanges = [single(rng) for _ in range(rng.randint(12, 30))]
    if rng.random() < 0.3:
        exchanges = remembered(rng)[:1] + exchanges + remembered(rng)[-1:]
        # The last question must be about the first turn, whatever kind it is.
        name = exchanges[0].answer.removeprefix("Nice to meet you, ").removesuffix("!")
        if exchanges[0].answer.startswith("Nice"):
            exchanges[-1] = Exchange("What is my name?", "The user told me the name.", f"Your name is {name}.")
        else:
            colour = exchanges[0].answer.split()[0].lower()
            exchanges[-1] = Exchange("What is my favourite colour?", "The user told me the colour.", f"Your favourite colour is {colour}.")
    return {"messages": turns(exchanges, False), "thinking": False}


def copying(rng: random.Random) -> Conversation:
    """Chats whose answer repeats words of the question: with many of them at the start the model soon learns to look back."""
    roll = rng.random()
    if roll < 0.55:
        exchanges = [forms.repeating(rng) for _ in range(rng.randint(1, 4))]
    elif roll < 0.75:
        exchanges = remembered(rng)
    elif roll < 0.85:
        exchanges = [facts.exchange(rng)]
    elif roll < 0.95:
        exchanges = [sums.exchange(rng)]
    else:
        return tools.conversation(rng, False)
    return {"messages": turns(exchanges, False), "thinking": False}


def plain(rng: random.Random) -> Conversation:
    """Text without a chat, so that a bare completion goes on in sentences and ends."""
    kind = rng.random()
    if kind < 0.45:
        hero, gift = rng.choice(stories.HEROES)
        text = stories.tell(rng, hero, gift, rng.choice(stories.NAMES), rng.random() < 0.3)
    elif kind < 0.55:
        text = "Hello, world! " + rng.choice([project.MYSELF, project.ABOUT])
    elif kind < 0.85:
        answers = [answer for _, _, answer in rng.sample(project.TOPICS, rng.randint(1, 4)) if not answer.startswith(("Yes", "No,"))]
        text = " ".join([project.ABOUT, *(a for a in answers if a != project.ABOUT)])
    else:
        exchange = rng.choice([sums.exchange, facts.exchange, project.exchange])(rng)
        text = exchange.answer if rng.random() < 0.5 else f"{exchange.question}\n{exchange.answer}"
    return {"text": text}


def generate(count: int, seed: int, make: Callable[[random.Random], Conversation] = conversation) -> Iterator[Conversation]:
    """Yield `count` conversations; the same seed gives the same ones."""
    rng = random.Random(seed)
    for _ in range(count):
        yield make(rng)


def main() -> None:
    """Write the corpus as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "work" / "corpus.jsonl")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", encoding="utf-8") as file:
        for made in generate(args.count, args.seed):
            file.write(json.dumps(made, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
