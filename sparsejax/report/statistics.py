"""The mean over seeds and how sure it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# two-sided 95 % quantiles of Student's t, 1 to 10 degrees of freedom; above, the expansion is exact to 2e-4
_T = (12.70620, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814)


def t_quantile(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t.

    Source: table, and the Cornish-Fisher expansion in 1/freedom (Abramowitz and Stegun, 26.7.5).
    """
    if freedom < 1:
        raise ValueError(f"freedom: {freedom} is not at least 1")
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.9599640
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half its 95 % interval (Student's t over the seeds), which is None for a single value."""
    if len(values) < 2:
        return (values[0] if values else math.nan), None
    spread = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return sum(values) / len(values), t_quantile(len(values) - 1) * spread / math.sqrt(len(values))
