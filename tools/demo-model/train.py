"""Train the demo model from nothing: corpus, tokenizer, weights. Seeded; CPU only.

    python train.py --work work            # then: python export.py --work work

The loss counts only what the assistant says (its end mark included): the model learns to answer, not to ask.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import jinja2
import jinja2.ext
import numpy as np
import torch
import torch.nn.functional as F
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

import check
import corpus
from model import Config, Qwen3
from tokenizer import train_tokenizer

HERE = Path(__file__).parent
HEADER = "<|im_start|>assistant\n"
NO_THOUGHT = "<think>\n\n</think>\n\n"
END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
IGNORE = -100
WARMUP = 50
#: The matrices learn at half their rate until attention has found its feet.
CALM = 300
#: Token ids and targets of one conversation.
Document = tuple[list[int], list[int]]
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def chat_template() -> jinja2.Template:
    """The chat template under the settings of transformers, so that training sees what serving sees."""
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    env.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    return env.from_string((HERE / "chat_template.jinja").read_text(encoding="utf-8"))


def render(template: jinja2.Template, made: corpus.Conversation) -> str:
    """The text of a conversation; a plain text only gets its end mark."""
    return made["text"] + END_OF_TEXT if "text" in made else template.render(**made)


def spans(text: str) -> Iterator[tuple[str, bool]]:
    """Cut a rendered conversation into what is given and what the model must write.

    The empty think block belongs to the prompt (thinking is off), a filled one to the answer.
    """
    if text.endswith(END_OF_TEXT):
        yield text, True
        return
    rest = text
    while HEADER in rest:
        before, rest = rest.split(HEADER, 1)
        given = before + HEADER
        if rest.startswith(NO_THOUGHT):
            given, rest = given + NO_THOUGHT, rest.removeprefix(NO_THOUGHT)
        yield given, False
        answer, rest = rest.split(END, 1)
        yield answer + END, True
    yield rest, False


def bare(text: str) -> str:
    """The letters and digits of a text, in lower case."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


KEPT = [bare(question) for question, _ in check.UNSEEN]


def asks_unseen(made: corpus.Conversation) -> bool:
    """Whether a chat holds one of the questions that check.py keeps for itself, in whatever frame."""
    asked = f" {' '.join(bare(m['content']) for m in made['messages'] if m['role'] == 'user')} " if "messages" in made else f" {bare(made['text'])} "
    return any(f" {question} " in asked for question in KEPT)


def encode(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Document]:
    """Token ids of each conversation, and as targets the ids one place ahead where the assistant speaks."""
    pieces, owners = [], []
    for i, text in enumerate(texts):
        for piece, spoken in spans(text):
            pieces.append(piece)
            owners.append((i, spoken))
    documents: list[Document] = []
    for (i, spoken), encoded in zip(owners, tokenizer.encode_batch(pieces, add_special_tokens=False)):
        if i == len(documents):
            documents.append(([], []))
        ids, labels = documents[-1]
        ids += encoded.ids
        labels += encoded.ids if spoken else [IGNORE] * len(encoded.ids)
    return [(ids[:-1], labels[1:]) for ids, labels in documents]


def pack(documents: list[Document], length: int, rng: random.Random) -> np.ndarray:
    """Rows of `length` filled with whole conversations: [rows, 3, length] of ids, targets and conversation numbers."""
    documents = [d for d in documents if len(d[0]) <= length]
    rng.shuffle(documents)
    rows: list[list[Document]] = []
    space: list[int] = []
    open_rows: list[int] = []
    for document in documents:
        size = len(document[0])
        # First fit among the last few rows: little is wasted and the order stays random.
        row = next((r for r in open_rows if space[r] >= size), None)
        if row is None:
            row = len(rows)
            rows.append([])
            space.append(length)
            open_rows = [*open_rows[-15:], row]
        rows[row].append(document)
        space[row] -= size
    packed = np.zeros((len(rows), 3, length), dtype=np.int32)
    packed[:, 1] = IGNORE
    for r, members in enumerate(rows):
        at = 0
        for number, (ids, labels) in enumerate(members, start=1):
            packed[r, :, at : at + len(ids)] = [ids, labels, [number] * len(ids)]
            at += len(ids)
    rng.shuffle(order := list(range(len(rows))))
    return packed[order]


def loss_of(model: Qwen3, forward: Forward, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the assistant's tokens; conversations of one row do not see each other."""
    ids, labels, owner = batch.long().unbind(1)
    length = ids.shape[1]
    mask = (owner[:, None, :, None] == owner[:, None, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    spoken = labels != IGNORE
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.logits(forward(ids, mask)[spoken])
    return F.cross_entropy(logits.float(), labels[spoken])


def optimizers(model: Qwen3, rate: float, matrix_rate: float) -> list[torch.optim.Optimizer]:
    """AdamW for the embedding and the norms; Muon for the matrices of the layers, which then need fewer steps."""
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    ]


def main() -> None:
    """Write the corpus, train the tokenizer and the model, keep checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=HERE / "work", help="folder for the corpus and the checkpoints")
    parser.add_argument("--count", type=int, default=70_000, help="conversations in the corpus")
    parser.add_argument("--copy-steps", type=int, default=120, help="first steps, on chats that copy")
    parser.add_argument("--steps", type=int, default=2600, help="then steps on the corpus")
    parser.add_argument("--long-steps", type=int, default=20, help="last steps, on chats of up to 2048 tokens")
    parser.add_argument("--decay-steps", type=int, default=800, help="steps at the end in which the rate falls to zero")
    parser.add_argument("--tokens", type=int, default=2304, help="tokens of one step")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint of the work folder")
    parser.add_argument("--start", type=Path, help="begin from the weights of this checkpoint; its folder gives the tokenizer")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest AdamW learning rate")
    parser.add_argument("--matrix-rate", type=float, default=6e-3, help="highest Muon learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile: a third faster, needs a C++ compiler")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    rng = random.Random(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    config = Config()

    template = chat_template()
    texts = [render(template, chat) for chat in corpus.generate(args.count, args.seed) if not asks_unseen(chat)]
    if args.resume or args.start:
        tokenizer = Tokenizer.from_file(str((args.work if args.resume else args.start.parent) / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(texts[:40_000], config.vocab_size)
    if not args.resume:
        tokenizer.save(str(args.work / "tokenizer.json"))
    documents = encode(tokenizer, texts)
    tokens = sum(len(ids) for ids, _ in documents)
    spoken = sum(sum(t != IGNORE for t in labels) for _, labels in documents)
    print(f"corpus: {len(documents)} conversations, {tokens} tokens, {spoken} of them spoken by the assistant")

    def extra(count: int, number: int, make: Callable[[random.Random], corpus.Conversation]) -> list[Document]:
        return encode(tokenizer, [render(template, chat) for chat in corpus.generate(count, args.seed + number, make) if not asks_unseen(chat)])

    #: (rows, steps on them)
    stages = [
        (pack(extra(40 * args.copy_steps, 1, corpus.copying), 384, rng), args.copy_steps),
        (pack(documents, 384, rng), args.steps),
        (pack(extra(6 * args.long_steps, 2, corpus.long_conversation), 2048, rng), args.long_steps),
    ]
    for rows, steps in stages:
        print(f"packed: {rows.shape[0]} rows of {rows.shape[2]} for {steps} steps of {args.tokens // rows.shape[2]}", flush=True)

    model = Qwen3(config)
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    forward: Forward = torch.compile(model, dynamic=False) if args.compile else model
    opts = optimizers(model, args.rate, args.matrix_rate)
    schedule = [(rows, at) for rows, steps in stages for at in range(steps)]
    total, first, seen = len(schedule), 0, 0
    if args.start and not args.resume:
        model.load_state_dict(torch.load(args.start, weights_only=True)["model"])
    if args.resume:
        saved = torch.load(args.work / "checkpoint.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        for opt, state in zip(opts, saved["optimizers"]):
            opt.load_state_dict(state)
        first, seen = saved["step"], saved["tokens"]
    started, sums = time.time(), []
    for step in range(first, total):
        source, at = schedule[step]
        rows = args.tokens // source.shape[2]
        batch = torch.from_numpy(source[np.arange(at * rows, (at + 1) * rows) % len(source)])
        # A constant rate with a fall at the end: a run that is cut short and resumed with fewer steps is the same run.
        scale = min(1.0, (step + 1) / WARMUP, max(0.01, (total - step) / args.decay_steps))
        for opt, rate in zip(opts, (args.rate, args.matrix_rate * (0.5 if step < CALM and not args.start else 1.0))):
            for group in opt.param_groups:
                group["lr"] = rate * scale
        loss = loss_of(model, forward, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        sums.append(loss.item())
        seen += int((batch[:, 2] != 0).sum())
        if (step + 1) % 25 == 0 or step + 1 == total:
            spent = time.time() - started
            print(f"step {step + 1}/{total}  loss {np.mean(sums[-25:]):.4f}  {spent / (step + 1 - first):.3f} s/step  {seen} tokens  {spent:.0f} s", flush=True)
        if (step + 1) % 100 == 0 or step + 1 == total:
            saved = {"model": model.state_dict(), "config": asdict(config), "step": step + 1, "loss": float(np.mean(sums[-25:])), "tokens": seen, "optimizers": [opt.state_dict() for opt in opts]}
            torch.save(saved, args.work / "checkpoint.new")
            (args.work / "checkpoint.new").replace(args.work / "checkpoint.pt")


if __name__ == "__main__":
    main()
