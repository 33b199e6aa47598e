"""Room: data. read -> recognise -> tokenize -> group -> step -> pack -> stream."""

from prefopt.data.columns import Example
from prefopt.data.config import DataConfig, DataOptions, WeightedSource
from prefopt.data.convert import Converted, convert_source
from prefopt.data.dataset import PreferenceData
from prefopt.data.findings import inspect_lines
from prefopt.data.inspection import Inspection, ShownRow, inspect_source, show
from prefopt.data.layout import assemble
from prefopt.data.load import load_preferences, tokenize_rows
from prefopt.data.mixing import Weighted, weighted
from prefopt.data.pack import Part, build_packs, plan_packs
from prefopt.data.shard import shard
from prefopt.data.split import Divided, split_source
from prefopt.data.statistics import Statistics
from prefopt.data.steps import StepPlan
from prefopt.data.stream import Packing, StepLoader, StreamLoader
from prefopt.data.summary import DataSummary, Lengths, Recognised
from prefopt.data.windows import PreferenceStream

__all__ = [
    "Converted",
    "DataConfig",
    "DataOptions",
    "DataSummary",
    "Divided",
    "Example",
    "Inspection",
    "Lengths",
    "Packing",
    "Part",
    "PreferenceData",
    "PreferenceStream",
    "Recognised",
    "ShownRow",
    "Statistics",
    "StepLoader",
    "StepPlan",
    "StreamLoader",
    "Weighted",
    "WeightedSource",
    "assemble",
    "build_packs",
    "convert_source",
    "inspect_lines",
    "inspect_source",
    "load_preferences",
    "plan_packs",
    "shard",
    "show",
    "split_source",
    "tokenize_rows",
    "weighted",
]
