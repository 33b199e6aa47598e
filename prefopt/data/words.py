"""Texts -> token ids, word by word where that is exact, so that a word is tokenized once however often it stands.

A text may be cut before a space that stands between two characters that are no whitespace, and its pieces tokenized
apart, if nothing in the tokenizer looks across such a cut. `cuts_at_spaces` says so from the tokenizer's own
description, and only for parts that are known; of any other tokenizer texts are tokenized whole.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import filterfalse
from typing import TYPE_CHECKING, Any

from prefopt.data.packed import pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KNOWN = 400_000
"""Pieces that are remembered; beyond them everything is forgotten and learnt anew."""
LONGEST = 48
"""Characters of a piece that is worth remembering."""
CUT, STOP = "\0", "\1"
"""Where a text is cut, and what ends a piece behind which nothing follows that could touch it: a mark or the end."""
PARALLEL_FROM = 64
"""Texts from which threads are worth it."""

# Alternatives of the patterns that cut texts into words. None matches a space behind another character that is no
# whitespace, and none looks behind itself, so that each cuts where we cut and on both sides as it would alone.
WORDS = frozenset(
    {
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        "'(?i:[sdmt]|ll|ve|re)",
        *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
        *(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", r" ?\p{L}+"),
        *(r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r" ?\p{N}+"),
        *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),
        *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
    }
)
_CUT = re.compile(r"(?<=\S)(?= \S)")


class Words:
    """Tokenizes texts as they stand, without BOS or EOS; what it knows of pieces grows from call to call."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bytes] = {}
        self._marks: list[tuple[str, str]] = []

    @cached_property
    def cuts(self) -> bool:
        """Whether texts are cut; may be set to False."""
        return cuts_at_spaces(self._tokenizer)

    def packed(self, texts: Sequence[str]) -> list[bytes]:
        """Return the packed token ids of each text."""
        if not self.cuts:
            return self.whole(texts)
        found: list[bytes] = []
        rest: list[tuple[int, list[str]]] = []
        new: dict[str, None] = {}
        odd: list[tuple[int, list[str]]] = []  # cut with more care, and not to be remembered
        known = self._known
        for index, text in enumerate(texts):
            pieces = self._pieces(text)
            try:
                found.append(b"".join(map(known.__getitem__, pieces)))
            except KeyError:
                found.append(b"")
                unknown = list(filterfalse(known.__contains__, pieces))
                if all(map(_stands_alone, filterfalse(new.__contains__, unknown))):
                    new.update(dict.fromkeys(unknown))
                    rest.append((index, pieces))
                else:
                    odd.append((index, _CUT.split(text)))
        learnt = self._learn(new, [piece.removesuffix(STOP) for piece in new])
        known.update(learnt)
        for index, pieces in rest:
            found[index] = b"".join(map(known.__getitem__, pieces))
        once = dict.fromkeys(piece for _, pieces in odd for piece in pieces)
        apart = self._learn(once, list(once))
        for index, pieces in odd:
            found[index] = b"".join([apart[piece] for piece in pieces])
        if len(known) > KNOWN:
            known.clear()
            known.update(learnt)
        for piece in learnt:
            if len(piece) > LONGEST:
                del known[piece]
        return found

    def _learn(self, pieces: Collection[str], texts: list[str]) -> dict[str, bytes]:
        return dict(zip(pieces, self.whole(texts), strict=True))

    def cut_before(self, texts: Collection[str]) -> None:
        """Cut before these tokens too: those among them that always stand by themselves and touch no other one."""
        added = [str(token) for token in self._tokenizer.added_tokens_decoder.values()]
        for text in lone_tokens(self._tokenizer):
            others = [other for other in added if other != text]
            ends = tuple(text[:size] for size in range(1, len(text)))
            if text in texts and not any(text in other or other.endswith(ends) for other in others):
                self._marks.append((text, STOP + CUT + text))

    def _pieces(self, text: str) -> list[str]:
        if CUT in text or STOP in text:
            return [CUT]  # stands for no piece
        cut = text.replace(" ", CUT + " ")
        for mark, marked in self._marks:
            cut = cut.replace(mark, marked)
        return (cut + STOP).split(CUT)

    def whole(self, texts: Sequence[str]) -> list[bytes]:
        """Return the packed token ids of each text, tokenized as one."""
        if not self._tokenizer.is_fast:
            return [pack(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
        if len(texts) < PARALLEL_FROM:
            return _encode(self._tokenizer, texts)
        # A worker is one of as many as there are cores.
        threads = 1 if multiprocessing.parent_process() is not None else os.cpu_count() or 1
        size = -(-len(texts) // (4 * threads))
        slices = [texts[at : at + size] for at in range(0, len(texts), size)]
        with ThreadPoolExecutor(threads) as pool:
            return [ids for own in pool.map(partial(_encode, self._tokenizer), slices) for ids in own]


def cuts_at_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens are the same when a text is cut before a lone space; False wherever that isn't certain."""
    if not tokenizer.is_fast:
        return False
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model.get("type") != "BPE" or model.get("dropout") or backend.get("truncation") or backend.get("padding"):
        return False
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    added = backend.get("added_tokens") or []
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in added):
        return False
    if any(re.search(r"\S ", token["content"]) for token in added):
        return False
    normalizers = list(_parts(backend.get("normalizer"), "normalizers"))
    if any(part["type"] != "NFC" for part in normalizers):  # a space composes with nothing
        return False
    cutters = list(_parts(backend.get("pre_tokenizer"), "pretokenizers"))
    cut = [part for part in cutters if _cuts_words(part)]
    return bool(cut) and all(_cuts_words(part) or _looks_at_characters(part) for part in cutters)


def _parts(part: Mapping[str, Any] | None, inner: str) -> Iterator[Mapping[str, Any]]:
    if part is None:
        return
    if part["type"] == "Sequence":
        for own in part[inner]:
            yield from _parts(own, inner)
    else:
        yield part


def _cuts_words(part: Mapping[str, Any]) -> bool:
    if part["type"] == "ByteLevel":
        return bool(part.get("use_regex", True)) and not part["add_prefix_space"]
    pattern = part.get("pattern") or {}
    return (
        part["type"] == "Split"
        and part["behavior"] == "Isolated"
        and not part["invert"]
        and "Regex" in pattern
        and WORDS.issuperset(_alternatives(pattern["Regex"]))
    )


def _looks_at_characters(part: Mapping[str, Any]) -> bool:
    return part["type"] == "Digits" or (part["type"] == "ByteLevel" and not part["add_prefix_space"])


def _alternatives(pattern: str) -> list[str]:
    """Split a regular expression at the bars outside of its brackets."""
    found, depth, start = [], 0, 0
    for at, character in enumerate(pattern):
        depth += (character in "([") - (character in ")]")
        if character == "|" and not depth:
            found.append(pattern[start:at])
            start = at + 1
    return [*found, pattern[start:]]


def lone_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that are found before anything else, so that what is beside them is tokenized apart."""
    return [
        str(token)
        for token in tokenizer.added_tokens_decoder.values()
        if not (token.lstrip or token.rstrip or token.single_word or token.normalized) and str(token).strip()
    ]


def _stands_alone(piece: str) -> bool:
    """Whether a piece between spaces is one between cuts: no other whitespace touches the spaces at its ends."""
    if piece in ("", STOP):
        return True
    inner = piece.removesuffix(STOP)
    if piece == CUT or (inner == piece and inner[-1].isspace()):
        return False
    return inner[0] != " " or not inner[1:2].isspace()


def _encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[bytes]:
    """Token ids without the offsets that nobody asked for; releases the interpreter's lock."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [pack(encoding.ids) for encoding in encodings]
