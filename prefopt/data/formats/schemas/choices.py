"""Two answers and a column that says which is preferred: SHP and PKU-SafeRLHF."""

from __future__ import annotations

from prefopt.data.config import DataOptions
from prefopt.data.formats.schemas.schema import Row, Schema
from prefopt.data.formats.values import choice, field


def _shp(row: Row, columns: tuple[str, ...], options: DataOptions) -> Row:
    history, *answers, label = columns
    sides = (0, 1) if choice(row, label) == 1 else (1, 0)  # 1 prefers A
    scores = [row.get(column) for column in ("score_A", "score_B")]
    return {
        "prompt": field(row, history),
        "chosen": field(row, answers[sides[0]]),
        "rejected": field(row, answers[sides[1]]),
        "score_chosen": scores[sides[0]],
        "score_rejected": scores[sides[1]],
    }


def _safe_rlhf(row: Row, columns: tuple[str, ...], options: DataOptions) -> Row:
    prompt, *answers, which = columns
    chosen = choice(row, which)
    return {
        "prompt": field(row, prompt),
        "chosen": field(row, answers[chosen]),
        "rejected": field(row, answers[1 - chosen]),
    }


SHP = Schema(
    name="shp",
    variants=(("history", "human_ref_A", "human_ref_B", "labels"),),
    becomes="pairs",
    rewrite=_shp,
    about="two answers to a post and which is preferred, as in SHP",
)
SAFE_RLHF = Schema(
    name="safe_rlhf",
    variants=(("prompt", "response_0", "response_1", "better_response_id"),),
    becomes="pairs",
    rewrite=_safe_rlhf,
    about="two answers and which is the better one (data.prefer), as in PKU-SafeRLHF",
    for_option=("prefer", "better"),
)
SAFER_RLHF = Schema(
    name="safer_rlhf",
    variants=(("prompt", "response_0", "response_1", "safer_response_id"),),
    becomes="pairs",
    rewrite=_safe_rlhf,
    about="two answers and which is the safer one (data.prefer), as in PKU-SafeRLHF",
    for_option=("prefer", "safer"),
)
