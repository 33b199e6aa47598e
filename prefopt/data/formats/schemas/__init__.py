"""Published schemas, one module a family."""

from prefopt.data.formats.schemas import choices, conversations, questions, ranks, ratings, spellings, strengths
from prefopt.data.formats.schemas.schema import Schema

SCHEMAS: dict[str, Schema] = {
    schema.name: schema
    for schema in (
        questions.QUESTION_PAIRS,
        choices.SHP,
        choices.SAFE_RLHF,
        choices.SAFER_RLHF,
        strengths.STRENGTHS,
        ratings.ULTRAFEEDBACK,
        ratings.HELPSTEER,
        ranks.RANKED,
        spellings.REWARDS,
        conversations.MESSAGES,
    )
}

__all__ = ["SCHEMAS", "Schema"]
