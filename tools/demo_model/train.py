"""Train the demo model: corpus → tokenizer → Llama → a Hugging Face directory.

    python -m tools.demo_model.train --out src/spinney/engine/models/demo

Everything is drawn from one seed. One thread of a CPU with bfloat16 matrix units takes about twenty
minutes; without them expect four times as long. Every checkpoint is exported, so the
directory can be used while training goes on.
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .corpus import Corpus
from .export import Record, export
from .network import Llama, Shape
from .tokenizer import render, train_tokenizer

TOKENIZER_DOCUMENTS = 20_000
QUESTION_WEIGHT = 0.1  # The model should read questions, not learn to make them up.
WEIGHT_DECAY = 0.05
HELD_OUT_SEED = 1_000_003


@dataclass(frozen=True, slots=True)
class Plan:
    """How the model is trained. Rows are short, because long ones cost more; see `row_length`."""

    seed: int = 7
    steps: int = 2800
    batch_tokens: int = 2048
    matrix_rate: float = 0.02
    other_rate: float = 0.003
    warmup_steps: int = 50
    decay_fraction: float = 0.7
    checkpoint_every: int = 700


def rows(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[list[int], list[float]]]:
    """Yield encoded documents without end: token ids, and the weight of guessing each."""
    for document in Corpus(random.Random(seed)).documents():
        tokens: list[int] = []
        weights: list[float] = []
        for piece, is_taught in render(document.messages):
            ids = tokenizer.encode(piece, add_special_tokens=False).ids
            tokens += ids
            weights += [1.0 if is_taught else QUESTION_WEIGHT] * len(ids)
        yield tokens, weights


class Batches:
    """Packs documents into rows; each row begins with the beginning of a document."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.documents = rows(tokenizer, seed)

    def next(self, count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return *count* rows of *length* + 1 tokens, and their weights."""
        packed = [self._row(length + 1) for _ in range(count)]
        return (
            torch.tensor([tokens for tokens, _ in packed]),
            torch.tensor([weights for _, weights in packed]),
        )

    def _row(self, length: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        weights: list[float] = []
        while len(tokens) < length:
            more, their_weights = next(self.documents)
            tokens += more
            weights += their_weights
        return tokens[:length], weights[:length]


def rate(plan: Plan, step: int) -> float:
    """Return the factor of the learning rates at *step*: up, flat, then down to nothing."""
    remaining = (plan.steps - step) / (plan.steps * plan.decay_fraction)
    return min(1.0, (step + 1) / plan.warmup_steps, remaining)


def row_length(step: int) -> int:
    """Return the tokens of a row at *step*: mostly 256, now and then 1,024 and 2,048.

    The long rows teach the positions that the short ones never reach.
    """
    if step % 32 == 31:
        return 2048
    return 1024 if step % 8 == 7 else 256


def optimizers(network: Llama, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the layers and AdamW for the rest."""
    matrices = [
        parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim == 2 and not name.startswith("embed")
    ]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=plan.matrix_rate, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, lr=plan.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def held_out_loss(network: Llama, tokenizer: Tokenizer) -> float:
    """Return the mean loss on documents of another seed."""
    batches = Batches(tokenizer, HELD_OUT_SEED)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return sum(network.loss(*batches.next(8, 512)).item() for _ in range(4)) / 4


def train(plan: Plan, shape: Shape, out: Path) -> None:
    """Train as *plan* says and export to *out* at every checkpoint and at the end."""
    torch.manual_seed(plan.seed)
    corpus = Corpus(random.Random(plan.seed)).documents()
    texts = (
        piece
        for document in itertools.islice(corpus, TOKENIZER_DOCUMENTS)
        for piece, _ in render(document.messages)
    )
    tokenizer = train_tokenizer(texts, shape.vocab_size)
    network = Llama(shape)
    batches = Batches(tokenizer, plan.seed + 1)
    chosen = optimizers(network, plan)
    base = [optimizer.param_groups[0]["lr"] for optimizer in chosen]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{parameters} parameters, {tokenizer.get_vocab_size()} tokens", flush=True)
    begin = time.monotonic()
    for step in range(plan.steps):
        length = row_length(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = network.loss(*batches.next(plan.batch_tokens // length, length))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer, learning_rate in zip(chosen, base, strict=True):
            optimizer.param_groups[0]["lr"] = learning_rate * rate(plan, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        minutes = (time.monotonic() - begin) / 60
        if done % 25 == 0:
            print(f"step {done}: loss {loss.item():.4f}, {minutes:.1f} min", flush=True)
        if done % plan.checkpoint_every == 0 or done == plan.steps:
            held_out = held_out_loss(network, tokenizer)
            print(f"step {done}: held-out loss {held_out:.4f}", flush=True)
            record = Record(plan.seed, done, done * plan.batch_tokens, minutes, held_out)
            export(network, tokenizer, shape, record, out)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train and export the demo model.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=Plan().seed)
    parser.add_argument("--steps", type=int, default=Plan().steps)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    every = min(Plan().checkpoint_every, math.ceil(arguments.steps / 2))
    plan = Plan(seed=arguments.seed, steps=arguments.steps, checkpoint_every=every)
    train(plan, Shape(), arguments.out)


if __name__ == "__main__":
    main()
