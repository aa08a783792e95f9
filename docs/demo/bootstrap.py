"""The bootstrap of the demo: confidence intervals for a robust regression on real data.

The data is the diabetes study bundled with scikit-learn (442 patients, 10 measurements, Efron et
al. 2004, "Least angle regression"). One task draws a few resamples of the patients and fits a Huber
regression to each; the spread of the coefficients over all resamples gives their confidence
intervals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FITS_PER_TASK = 2


def fit_resamples(seed: int) -> NDArray[np.float64]:
    """Return the coefficients of `FITS_PER_TASK` resamples, shape (fits, measurements).

    Args:
        seed: makes the task's random numbers its own, on whichever engine it runs.
    """
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import HuberRegressor

    patients, progression = load_diabetes(return_X_y=True)
    rng = np.random.default_rng(seed)
    coefficients = []
    for _ in range(FITS_PER_TASK):
        drawn = rng.integers(len(patients), size=len(patients))
        model = HuberRegressor(max_iter=2000).fit(patients[drawn], progression[drawn])
        coefficients.append(model.coef_)
    return np.array(coefficients)


def confidence_intervals(
    coefficients: NDArray[np.float64], level: float = 0.95
) -> NDArray[np.float64]:
    """Return lower bound, median and upper bound of each coefficient, shape (3, measurements)."""
    tail = 50 * (1 - level)
    interval: NDArray[np.float64] = np.percentile(coefficients, [tail, 50, 100 - tail], axis=0)
    return interval
