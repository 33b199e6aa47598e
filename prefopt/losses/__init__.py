"""Preference losses: each is a module, a function of sequence log-probs that declares what it needs."""

from prefopt.losses.base import ListLoss, Loss, PairLoss, best_and_worst
from prefopt.losses.bradley_terry import BradleyTerry, PairRewards
from prefopt.losses.config import LossConfig
from prefopt.losses.dpo import DPO
from prefopt.losses.ipo import IPO
from prefopt.losses.kto import KTO
from prefopt.losses.mixture import Mixture, Share
from prefopt.losses.registry import available, build

__all__ = [
    "DPO",
    "IPO",
    "KTO",
    "BradleyTerry",
    "ListLoss",
    "Loss",
    "LossConfig",
    "Mixture",
    "PairLoss",
    "PairRewards",
    "Share",
    "available",
    "best_and_worst",
    "build",
]
