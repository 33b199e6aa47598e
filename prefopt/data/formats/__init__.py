"""What rows are: the library's own formats, the published schemas that become them, and how they are told apart."""

from prefopt.data.formats.format import FIELDS, FORMS, PAIR_SCORES, Format, FormName
from prefopt.data.formats.recognise import SAMPLE, SCORABLE, TRAINABLE, recognise
from prefopt.data.formats.schemas import SCHEMAS, Schema
from prefopt.data.formats.transcripts import TRANSCRIPT_ANSWER, transcript_turns
from prefopt.data.formats.values import is_number

__all__ = [
    "FIELDS",
    "FORMS",
    "PAIR_SCORES",
    "SAMPLE",
    "SCHEMAS",
    "SCORABLE",
    "TRAINABLE",
    "TRANSCRIPT_ANSWER",
    "FormName",
    "Format",
    "Schema",
    "is_number",
    "recognise",
    "transcript_turns",
]
