"""Room: data. read -> recognise -> tokenize -> group -> step -> pack -> stream."""

from prefopt.data.columns import Example
from prefopt.data.config import DataConfig, DataOptions
from prefopt.data.convert import Converted, convert_source
from prefopt.data.dataset import PreferenceData
from prefopt.data.findings import inspect_lines
from prefopt.data.inspection import Inspection, ShownRow, inspect_source, show
from prefopt.data.load import load_preferences, tokenize_rows
from prefopt.data.pack import Part, assemble, build_packs, plan_packs
from prefopt.data.split import Divided, split_source
from prefopt.data.statistics import Statistics
from prefopt.data.steps import StepPlan
from prefopt.data.stream import StepLoader
from prefopt.data.summary import DataSummary, Lengths, Recognised

__all__ = [
    "Converted",
    "DataConfig",
    "DataOptions",
    "DataSummary",
    "Divided",
    "Example",
    "Inspection",
    "Lengths",
    "Part",
    "PreferenceData",
    "Recognised",
    "ShownRow",
    "Statistics",
    "StepLoader",
    "StepPlan",
    "assemble",
    "build_packs",
    "convert_source",
    "inspect_lines",
    "inspect_source",
    "load_preferences",
    "plan_packs",
    "show",
    "split_source",
    "tokenize_rows",
]
