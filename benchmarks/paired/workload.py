"""The preference pairs that both sides train on: real English of log-normal lengths, a function of the seed alone.

Standard library only: the process that starts the others imports this and must stay small.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PROMPT_WORDS = 128
"""Mean words of a prompt, unless it is said otherwise."""
COMPLETION_WORDS = 64
"""Mean words of a completion."""
SIGMA = 0.4
"""Standard deviation of the logarithm of a length."""

SYSTEM = "You are a helpful assistant."
QUESTION = "Here is the start of a film review. Continue it in the same voice."


def default_sentences() -> Path:
    """Return the film-review sentences that ship with the demo. Raises `FileNotFoundError` where there are none."""
    demo = Path(__file__).resolve().parents[2] / "prefopt" / "demo"
    found = sorted(demo.rglob("*.jsonl.gz"))
    if not found:
        raise FileNotFoundError(f"no *.jsonl.gz with sentences under {demo}; name one with --sentences FILE")
    return found[0]


def read_sentences(path: Path) -> list[str]:
    """Return the texts of `path`, JSON Lines (gzipped or not) whose rows have a `text`, in the file's order."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [str(json.loads(line)["text"]).strip() for line in lines if line.strip()]


def log_normal_words(rng: random.Random, mean: float) -> int:
    """Draw a number of words, log-normal with the given mean and `SIGMA`, at least 4 and at most 4 times the mean."""
    drawn = rng.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA)
    return max(4, min(round(drawn), int(4 * mean)))


def running_text(rng: random.Random, sentences: Sequence[str], words: int) -> str:
    """Join sentences drawn at random until there are `words` words, and cut there."""
    taken: list[str] = []
    while len(taken) < words:
        sentence = rng.choice(sentences)
        taken += (sentence if sentence[-1] in ".!?" else sentence + ".").split()
    return " ".join(taken[:words])


def chat(role: str, content: str) -> str:
    """Render one message in ChatML. Written out so that both sides get the same text and no template is involved."""
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"


def make_rows(
    sentences: Sequence[str], count: int, seed: int, prompt_words: int = PROMPT_WORDS
) -> list[dict[str, str]]:
    """Return `count` rows of prompt, chosen and rejected text, ready to tokenize: no template, no special token added.

    The completions end with ChatML's end-of-turn, which is SmolLM2-Instruct's end-of-text token too, so neither
    side appends another.
    """
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        start = running_text(rng, sentences, log_normal_words(rng, prompt_words) - len(QUESTION.split()))
        prompt = chat("system", SYSTEM) + chat("user", f"{QUESTION}\n\n{start}") + "<|im_start|>assistant\n"
        chosen, rejected = (
            running_text(rng, sentences, log_normal_words(rng, COMPLETION_WORDS)) + "<|im_end|>" for _ in range(2)
        )
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def labelled(row: dict[str, str]) -> list[dict[str, Any]]:
    """Return a pair's two completions with their labels."""
    return [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"} for side in ("chosen", "rejected")
    ]


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def fingerprint(examples: Iterable[tuple[Sequence[int], ...]]) -> str:
    """Hash (prompt, completion, ...) token ids in order: equal on both sides, or the comparison is void."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([list(map(int, ids)) for ids in example]).encode())
    return digest.hexdigest()
