"""Small sets of every format that there is, plain and as conversations, for what must hold for all of them."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

ASKED = [
    "what is the best tea?",
    "is the film great?",
    "what is the answer?",
    "do I like it?",
    "name a fox.",
    "name a dog.",
    "is it lazy?",
]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def answer(text: str) -> Row:
    return {"role": "assistant", "content": text}


def _pairs() -> dict[str, list[Row]]:
    scored = [
        {"prompt": q, "chosen": f" Yes {i}.", "rejected": " No.", "score_chosen": 1.5 * i, "score_rejected": 2}
        for i, q in enumerate(ASKED)
    ]
    human = [f"\n\nHuman: {q}\n\nAssistant: Hm?\n\nHuman: Say.\n\nAssistant:" for q in ASKED]
    return {
        "pairs": [{"prompt": q, "chosen": f" Yes {i}.", "rejected": " No.", "id": i} for i, q in enumerate(ASKED)],
        "pairs that repeat the prompt": [
            {"prompt": q, "chosen": f"{q} Yes {i}.", "rejected": f"{q} No."} for i, q in enumerate(ASKED)
        ],
        "pairs whose answers begin like their prompt again": [
            {"prompt": q, "chosen": f"{q}{q} Yes {i}.", "rejected": f"{q}{q} No."} for i, q in enumerate(ASKED)
        ],
        "scored pairs": scored,
        "pairs of which some have scores": [
            {**row, "score_chosen": None} if i % 3 == 0 else row for i, row in enumerate(scored)
        ],
        "implicit pairs": [{"chosen": f"{q} Yes {i}.", "rejected": f"{q} No."} for i, q in enumerate(ASKED)],
        "transcripts": [
            {"chosen": f"{q} Yes {i}.", "rejected": f"{q} No.", "gap": i / 3} for i, q in enumerate(human)
        ],
        "conversational pairs": [
            {"prompt": [user(q)], "chosen": [answer(f"Yes {i}.")], "rejected": [answer("No.")], "ok": i > 2}
            for i, q in enumerate(ASKED)
        ],
        "conversational implicit pairs": [
            {"chosen": [user("Hi"), answer("Hello."), user(q), answer(f"Yes {i}.")],
             "rejected": [user("Hi"), answer("Hello."), user(q), answer("No.")]}
            for i, q in enumerate(ASKED)
        ],
        "messages with a name": [
            {"prompt": [{**user(q), "name": "Ann"} if i % 2 else user(q)], "chosen": [answer(f"Yes {i}.")],
             "rejected": [answer("No.")]}
            for i, q in enumerate(ASKED)
        ],
    }  # fmt: skip


def _others() -> dict[str, list[Row]]:
    return {
        "labels": [{"prompt": q, "completion": f" Yes {i}.", "label": i % 2 == 0} for i, q in enumerate(ASKED)],
        "conversational labels": [
            {"prompt": [user(q)], "completion": [answer(f"Yes {i}.")], "label": i % 2, "rater": "Ann"}
            for i, q in enumerate(ASKED)
        ],
        "demonstrations": [{"prompt": q, "completion": f" Yes {i}."} for i, q in enumerate(ASKED)],
        "lists": [
            {"prompt": q, "completions": [" No.", f" Yes {i}.", " Well."], "scores": [0, i, 0.5]}
            for i, q in enumerate(ASKED)
        ],
        "conversational lists": [
            {"prompt": [user(q)], "completions": [[answer("No.")], [answer(f"Yes {i}.")]], "scores": [0, 1 + i]}
            for i, q in enumerate(ASKED)
        ],
    }


FORMATS = {**_pairs(), **_others()}
"""What it is -> rows, all of which can be used."""
