"""The `file` engine: completions that were made elsewhere, with log-probs that are computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.config import DataOptions
from prefopt.data.read import as_list, as_messages, plain
from prefopt.data.sources import Source, open_sources
from prefopt.errors import DataError
from prefopt.models.packed import PackedModel
from prefopt.models.references import Reference
from prefopt.sampling.engine import Drawn, Judge
from prefopt.sampling.generation import encode
from prefopt.sampling.prompts import end_of_turn_ids
from prefopt.sampling.rollouts import Prompt, Rollout, prompt_key


class FileEngine:
    """Gives the completions that a file has of each prompt.

    A row has `prompt_id` or `prompt` (text or messages), and `token_ids` or `text`. Token ids are taken as they are. A
    text is tokenized, and ends with the tokenizer's end of turn unless the row says `finish: length`. Rows of one
    prompt are its samples in their order; `seed`, where a row has one, is kept.

    Args:
        source: as of `read_prompts`, with one completion a row.
        policy: the model whose log-probs are wanted.
        tokenizer: its tokenizer.
        q: what the completions were drawn from, as far as it is known: temperature, top_p, top_k.
        reference: what log-probs are compared with, if anything.
        token_budget: tokens scored at once; None takes what suits the device.

    Raises:
        DataError: nothing to read, or a row that can't be used, with its place.
    """

    name = "file"

    def __init__(
        self,
        source: Source,
        policy: PackedModel,
        tokenizer: Any,
        *,
        q: Mapping[str, Any] | None = None,
        reference: Reference | None = None,
        token_budget: int | None = None,
    ) -> None:
        self._policy, self._tokenizer, self._q = policy, tokenizer, dict(q or {})
        self._ends = tuple(end_of_turn_ids(policy.model, tokenizer))
        self.judge = Judge(policy, tokenizer, self._ends, reference, token_budget)
        self._made: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        for named in open_sources(source, DataOptions()):
            for raw in named.read(None):
                if raw.row is None:
                    raise DataError(f"{raw.where}: {raw.problem}.")
                key, seed, ids = self._read(raw.row, raw.where)
                self._made.setdefault(key, []).append((seed, ids))

    @property
    def q(self) -> dict[str, Any]:
        """What was said of how the file was made."""
        return {"engine": self.name, **self._q}

    def sample(self, shard: Sequence[Prompt], *, n: int, seed: int) -> list[Rollout]:
        """Return the first n completions that the file has of each prompt; `seed` changes nothing.

        Raises:
            DataError: the file has fewer than n of a prompt, or a prompt with its completion is too long for the model.
        """
        drawn = []
        for prompt in shard:
            made = self._made.get(prompt.prompt_id) or self._made.get(prompt_key(prompt.prompt)) or []
            if len(made) < n:
                raise DataError(
                    f"The file has {len(made)} completions of prompt {prompt.prompt_id}, and {n} are to be taken: "
                    "lower sample.n, or add completions."
                )
            name, longest = f"prompt {prompt.prompt_id}", max(len(ids) for _, ids in made[:n])
            ids = tuple(encode(self._policy.model, self._tokenizer, prompt.prompt, longest, name))
            drawn += [Drawn(prompt.prompt_id, at, own, ids, row) for at, (own, row) in enumerate(made[:n])]
        return self.judge.rollouts(drawn)

    def _read(self, row: Mapping[str, Any], where: str) -> tuple[str, int, tuple[int, ...]]:
        """Return what a row's prompt is known by, its seed and its completion."""
        name, prompt = row.get("prompt_id"), as_messages(row.get("prompt"))
        if not name and not prompt:
            raise DataError(f"{where} has neither 'prompt_id' nor 'prompt', so nothing says what it answers.")
        seed = plain(row.get("seed")) or 0
        return str(name) if name else prompt_key(prompt), int(seed), self._tokens(row, where)

    def _tokens(self, row: Mapping[str, Any], where: str) -> tuple[int, ...]:
        ids, text = as_list(row.get("token_ids")), row.get("text")
        if ids is not None:
            size = self._policy.config.get_text_config(decoder=True).vocab_size
            found = tuple(ids) if isinstance(ids, list | tuple) else ()
            if not found or not all(type(one) is int and 0 <= one < size for one in found):
                raise DataError(f"{where}: 'token_ids' must be a list of one or more numbers from 0 to {size - 1}.")
            return found
        if not isinstance(text, str):
            raise DataError(f"{where} has neither 'token_ids' nor 'text'; a row holds one completion.")
        found = tuple(self._tokenizer(str(text), add_special_tokens=False)["input_ids"])
        if row.get("finish") == "length":
            if not found:
                raise DataError(f"{where} is cut before its first token: leave it out.")
            return found
        if not self._ends:
            raise DataError(
                f"{where} ended by itself, and the tokenizer has no end of turn: write 'token_ids' instead."
            )
        return (*found, self._ends[-1])
