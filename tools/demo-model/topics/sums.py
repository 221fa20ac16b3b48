"""Small sums: one- and two-digit addition and subtraction, products, exact divisions, little word problems."""

from __future__ import annotations

import random

from .phrasing import Exchange, ask, expand

TOO_BIG = "That is too big for me. I can only do sums with numbers of one or two digits."

PLUS = ["What is {a} + {b}", "{a} + {b}", "{a}+{b}", "what's {a} + {b}", "How much is {a} + {b}", "What is {a} plus {b}", "{a} plus {b}", "Add {a} and {b}", "What is the sum of {a} and {b}", "Calculate {a} + {b}",
        "What does {a} + {b} make", "{a} + {b} =", "what is {a}+{b}", "How much is {a} plus {b}", "Compute {a} + {b}", "can you add {a} and {b}", "What do you get when you add {a} and {b}", "Do you know what {a} + {b} is", "Tell me {a} + {b}",
        "Please add {a} and {b}", "what is the result of {a} + {b}", "solve {a} + {b}", "Sum {a} and {b}", "{a} and {b} together", "How much is {a} and {b}", "Add {b} to {a}", "Give me {a} + {b}", "Work out {a} + {b}", "I need the sum of {a} and {b}", "what's {a} plus {b}", "the sum of {a} and {b}", "How much do {a} and {b} make", "find {a} + {b}", "the result of {a} plus {b}", "if I add {a} and {b}, what do I get", "{a} more than {b}", "{a} + {b}, how much is that", "what do {a} and {b} make"]
MINUS = ["What is {a} - {b}", "{a} - {b}", "{a}-{b}", "what's {a} - {b}", "How much is {a} - {b}", "What is {a} minus {b}", "{a} minus {b}", "Subtract {b} from {a}", "Take {b} away from {a}", "Calculate {a} - {b}",
         "What is the difference between {a} and {b}", "{a} - {b} =", "what is {a}-{b}", "How much is {a} minus {b}", "Compute {a} - {b}", "can you subtract {b} from {a}", "What is left when you take {b} from {a}", "Tell me {a} - {b}", "solve {a} - {b}", "{a} take away {b}", "How much is {a} less {b}", "Give me {a} - {b}", "Work out {a} - {b}", "what's {a} minus {b}", "the difference between {a} and {b}", "find {a} - {b}", "the result of {a} minus {b}", "{a} - {b}, how much is that", "if I take {b} from {a}, what is left", "What remains of {a} without {b}", "What is {b} less than {a}", "How much is left of {a} after taking {b}"]
TIMES = ["What is {a} * {b}", "{a} * {b}", "{a} x {b}", "What is {a} times {b}", "{a} times {b}", "How much is {a} times {b}", "Multiply {a} by {b}", "Multiply {a} and {b}", "What is the product of {a} and {b}", "Calculate {a} * {b}", "what is {a} x {b}", "what's {a} times {b}",
         "{a} * {b} ="]
OVER = ["What is {a} divided by {b}", "{a} divided by {b}", "What is {a} / {b}", "{a} / {b}", "Divide {a} by {b}", "How much is {a} divided by {b}", "How many times does {b} go into {a}"]
THINGS = ["apples", "books", "pencils", "coins", "cookies", "marbles", "stamps", "shells", "eggs", "flowers", "cards", "balls"]


def held_out(a: int, b: int) -> bool:
    """One pair in nineteen is never shown in training, so that the check can measure sums the model has not seen."""
    low, high = min(a, b), max(a, b)
    return low > 9 and (low * 31 + high * 17) % 19 == 0


def number(rng: random.Random) -> int:
    """A number of one or two digits, two digits three times in four."""
    return rng.randint(10, 99) if rng.random() < 0.75 else rng.randint(0, 9)


def pair(rng: random.Random) -> tuple[int, int]:
    """Two numbers that are not held out."""
    while True:
        a, b = number(rng), number(rng)
        if not held_out(a, b):
            return a, b


def plus(a: int, b: int) -> tuple[str, str]:
    """Thought and answer of an addition."""
    ones, tens = a % 10 + b % 10, a // 10 * 10 + b // 10 * 10
    return f"The ones: {a % 10} + {b % 10} is {ones}. The tens: {a // 10 * 10} + {b // 10 * 10} is {tens}. Together {tens + ones}.", f"{a} + {b} is {a + b}."


def minus(a: int, b: int) -> tuple[str, str]:
    """Thought and answer of a subtraction."""
    tens = a - b // 10 * 10
    return f"First take away {b // 10 * 10}: {tens}. Then take away {b % 10}: {a - b}.", f"{a} - {b} is {a - b}."


def several(rng: random.Random) -> Exchange:
    """A handful of sums in one question: much practice in few tokens."""
    asked, thoughts, answers = [], [], []
    for _ in range(rng.randint(3, 9)):
        a, b = pair(rng)
        if rng.random() < 0.5:
            asked.append(f"{a} + {b}")
            answers.append(plus(a, b)[1])
        else:
            a, b = max(a, b), min(a, b)
            asked.append(f"{a} - {b}")
            answers.append(minus(a, b)[1])
    lead = expand(rng, "[Calculate|Compute|Solve|What is|Please do these sums:|Sums:|]")
    return Exchange(f"{lead} {', '.join(asked)}{'?' if lead == 'What is' else ''}".strip(), "These are several sums. I do one after the other.", " ".join(answers))


def exchange(rng: random.Random) -> Exchange:
    """One sum with its answer."""
    kind = rng.random()
    if kind < 0.42:
        a, b = pair(rng)
        form = PLUS[0] if rng.random() < 0.3 else rng.choice(PLUS)
        thought, answer = plus(a, b)
    elif kind < 0.81:
        a, b = pair(rng)
        if a < b and rng.random() < 0.8:
            a, b = b, a
        form = MINUS[0] if rng.random() < 0.3 else rng.choice(MINUS)
        thought, answer = minus(a, b)
    elif kind < 0.88:
        a, b = rng.randint(0, 12), rng.randint(0, 12)
        form = rng.choice(TIMES)
        thought, answer = f"This is a product: {a} times {b}.", f"{a} times {b} is {a * b}."
    elif kind < 0.91:
        b, c = rng.randint(1, 10), rng.randint(0, 10)
        a = b * c
        form = rng.choice(OVER)
        thought, answer = f"{b} times {c} is {a}.", f"{a} divided by {b} is {c}."
    elif kind < 0.93:
        a, b, c = (rng.randint(0, 9) for _ in range(3))
        form = rng.choice(["What is {a} + {b} + {c}", "{a} + {b} + {c}", "Add {a}, {b} and {c}", "{a} plus {b} plus {c}"]).replace("{c}", str(c))
        thought, answer = f"{a} + {b} is {a + b}, and {a + b} + {c} is {a + b + c}.", f"{a} + {b} + {c} is {a + b + c}."
    elif kind < 0.97:
        thing = rng.choice(THINGS)
        while True:
            a, b = rng.randint(2, 50), rng.randint(1, 40)
            if not held_out(a, b):
                break
        if rng.random() < 0.5:
            form = expand(rng, "[I have|I own|Anna has|There are] {a} {t} [and get|and buy|and find] {b} more. How many {t} are there [now|in all|]", t=thing)
            thought, answer = plus(a, b)[0], f"{a} + {b} is {a + b}, so there are {a + b} {thing}."
        else:
            a, b = max(a, b), min(a, b)
            form = expand(rng, "[I have|I had|Tom has|There are] {a} {t} and [I lose|I give away|I sell|we take away] {b}. How many {t} are left", t=thing)
            thought, answer = minus(a, b)[0], f"{a} - {b} is {a - b}, so {a - b} {thing} are left."
    else:
        a, b = rng.randint(100, 10 ** rng.randint(3, 6)), rng.randint(10, 10 ** rng.randint(2, 6))
        form = rng.choice(PLUS + MINUS + TIMES + OVER)
        thought, answer = "These numbers have too many digits for me.", TOO_BIG
    form = form.replace("{a}", str(a)).replace("{b}", str(b))
    mark = "?" if form[0] in "WHDwh" else ""
    if form.endswith("="):
        return Exchange(form, thought, answer)
    if rng.random() < 0.5:
        return Exchange(form + mark, thought, answer)
    return Exchange(ask(rng, form, "?" if mark else rng.choice(["", "?", "."]), typos=False), thought, answer)
