"""Accuracy beside the human ceiling, by how far raters agree."""

from __future__ import annotations

import numpy as np
import pytest

from prefopt.errors import DataError
from prefopt.eval import accuracy_by_agreement, wilson


def test_bins_by_hand() -> None:
    margins = [1.0, -1.0, 2.0, 0.0, 3.0, 1.0]
    raters = [0.55, 0.59, 0.6, 0.95, 1.0, np.nan]
    human = [0.5, 0.6, 0.7, np.nan, 1.0, 0.1]
    found = accuracy_by_agreement(margins, raters, human)
    assert [(part.low, part.high, part.n) for part in found] == [(0.5, 0.6, 2), (0.6, 0.7, 1), (0.9, 1.0, 2)]
    assert (found[0].accuracy.value, found[0].accuracy.low, found[0].accuracy.high) == (0.5, *wilson(1, 2))
    assert found[0].human is not None
    assert found[0].human.value == pytest.approx(0.55)
    assert (found[2].accuracy.right, found[2].accuracy.ties) == (1, 1)
    assert found[2].human is not None
    assert (found[2].human.value, found[2].human.n) == (1.0, 1)
    assert accuracy_by_agreement(margins, raters)[0].human is None


def test_percents_are_no_shares() -> None:
    with pytest.raises(DataError, match="outside 0 to 1"):
        accuracy_by_agreement([1.0], [80])
