"""A recipe in, a run directory out, and the way back into a run."""

from prefopt.workflow.directory import INPUTS, claim_directory
from prefopt.workflow.finished import eval_pairs_run, load_run, save_result
from prefopt.workflow.inputs import load_held_out
from prefopt.workflow.train import RunResult, train_run

__all__ = [
    "INPUTS",
    "RunResult",
    "claim_directory",
    "eval_pairs_run",
    "load_held_out",
    "load_run",
    "save_result",
    "train_run",
]
