"""Room: data. read -> recognise -> tokenize -> group -> step -> pack -> stream."""

from prefopt.data.config import DataConfig, DataOptions, WeightedSource
from prefopt.data.dataset import Example, PreferenceData
from prefopt.data.inspection import Inspection, ShownRow, inspect_lines, inspect_source, show
from prefopt.data.layout import assemble
from prefopt.data.load import load_preferences, tokenize_rows
from prefopt.data.mixing import Weighted, weighted
from prefopt.data.pack import Part, build_packs, plan_packs
from prefopt.data.shard import shard
from prefopt.data.steps import StepPlan
from prefopt.data.stream import Packing, StepLoader, StreamLoader
from prefopt.data.summary import DataSummary, Lengths, Recognised
from prefopt.data.windows import PreferenceStream

__all__ = [
    "DataConfig",
    "DataOptions",
    "DataSummary",
    "Example",
    "Inspection",
    "Lengths",
    "Packing",
    "Part",
    "PreferenceData",
    "PreferenceStream",
    "Recognised",
    "ShownRow",
    "StepLoader",
    "StepPlan",
    "StreamLoader",
    "Weighted",
    "WeightedSource",
    "assemble",
    "build_packs",
    "inspect_lines",
    "inspect_source",
    "load_preferences",
    "plan_packs",
    "shard",
    "show",
    "tokenize_rows",
    "weighted",
]
