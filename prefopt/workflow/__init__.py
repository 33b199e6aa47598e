"""A recipe in, a run directory out, and the way back into a run."""

from prefopt.workflow.directory import INPUTS, claim_directory
from prefopt.workflow.evaluations import compare_runs, eval_pairs_run
from prefopt.workflow.finished import load_run, save_result
from prefopt.workflow.inputs import load_held_out
from prefopt.workflow.reference import BuildResult, build_cache, cache_usage, clear_cache
from prefopt.workflow.rewardbench import rewardbench_run
from prefopt.workflow.start import Start
from prefopt.workflow.train import RunResult, train_run

__all__ = [
    "INPUTS",
    "BuildResult",
    "RunResult",
    "Start",
    "build_cache",
    "cache_usage",
    "claim_directory",
    "clear_cache",
    "compare_runs",
    "eval_pairs_run",
    "load_held_out",
    "load_run",
    "rewardbench_run",
    "save_result",
    "train_run",
]
