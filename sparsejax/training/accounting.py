"""What training costs by method: each name of a config with the rule by which its FLOPs are counted.

A new method is one line in `ACCOUNTING`, unless kept weights alone meet data. A rule turns a `Spent` (forward FLOPs at
the masks that the run really had) into the mean FLOPs of a step on one example. As in RigL, selections, optimizer and
what is computed once (scores before the first step, a Fisher matrix) do not count.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sparsejax import flops
from sparsejax.training.methods import METHODS
from sparsejax.training.metrics import Record


class Spent(NamedTuple):
    """What a run's cost follows from.

    Attributes:
      layers: path -> dense forward FLOPs of an example.
      densities: of each stage, path -> density (mean over the seeds).
      durations: steps of each stage; together the whole run.
      arguments: of the method, those of the config over its defaults.
    """

    layers: Mapping[str, int]
    densities: Sequence[Mapping[str, float]]
    durations: Sequence[int]
    arguments: Mapping[str, Any]

    @property
    def dense(self) -> float:
        """f_D: forward FLOPs of the dense net."""
        return float(sum(self.layers.values()))

    @property
    def forward(self) -> list[float]:
        """f_S of each stage: forward FLOPs at its masks."""
        return [flops.inference_flops(self.layers, density) for density in self.densities]

    @property
    def mean(self) -> float:
        """The mean of f_S over the run."""
        return self.over(self.forward)

    def over(self, costs: Sequence[float]) -> float:
        """The mean of one number a stage over the run's steps."""
        return sum(cost * steps for cost, steps in zip(costs, self.durations)) / sum(self.durations)


Rule = Callable[[Spent], float]


def dense(run: Spent) -> float:
    """3 f_D: every weight takes part in everything."""
    return flops.dense_training(run.dense)


def kept_only(run: Spent) -> float:
    """The mean of 3 f_S(t): only kept weights meet data, forward and backward (static, SET, GMP, phases of AC/DC)."""
    return flops.gradual_training(run.forward, run.durations)


def gradient_grown(run: Spent) -> float:
    """(3 f_S ΔT + 2 f_S + f_D) / (ΔT + 1): all weights' gradient once in ΔT = `update_every` steps (RigL).

    Where the method grows at random, 3 f_S.
    """
    every = run.arguments.get("update_every")
    if run.arguments.get("grow") == "random" or not every:
        return kept_only(run)
    return flops.rigl_training(run.mean, run.dense, every)


def dense_gradient(run: Spent) -> float:
    """2 f_S + f_D: all weights' gradient at each step (SNFS, straight-through methods, scores trained as weights)."""
    return flops.dense_gradient_training(run.mean, run.dense)


def dense_at_first(run: Spent) -> float:
    """3 f_D until `update_end`, then 3 f_S: what shrinks, or is masked in the books alone, takes part till then."""
    until = run.arguments.get("update_end")
    starts = itertools.accumulate(run.durations[:-1], initial=0)
    forward = [run.dense if until is None or start < until else kept for start, kept in zip(starts, run.forward)]
    return flops.gradual_training(forward, run.durations)


def two_masks(run: Spent) -> float:
    """f_F + f_B + f_D: one mask forward, another for the inputs' gradient, all weights' gradient (BDWP).

    Both masks keep as much, N of M, so that the inputs' gradient costs what the forward pass does.
    """
    return flops.two_mask_training(run.mean, run.mean, run.dense)


def wider_backward(run: Spent) -> float:
    """f_A + 2 f_B: forward by the set A, backward by the larger B (Top-KAST).

    B has `backward_sparsity` where the method has that argument, A's layers scaled alike up to density 1; else B = A.
    """
    sparsity = run.arguments.get("backward_sparsity")
    if sparsity is None:
        return kept_only(run)
    backward = []
    for density in run.densities:
        kept = [density[path] for path in density]
        scale = (1 - sparsity) / (sum(kept) / len(kept)) if sum(kept) else 1.0
        wider = {path: min(1.0, max(share, share * scale)) for path, share in density.items()}
        backward.append(flops.inference_flops(run.layers, wider))
    return run.mean + 2 * run.over(backward)


# name in a config -> rule; of a method from elsewhere `kept_only`
ACCOUNTING: dict[str, Rule] = {
    "dense": dense,
    # fixed masks, chosen before or at one step
    "static": kept_only,
    "one_shot": kept_only,
    "magnitude_at_init": kept_only,
    "snip": kept_only,
    "grasp": kept_only,
    "synflow": kept_only,
    "asp": kept_only,
    # dense to sparse
    "gmp": kept_only,
    "sap": kept_only,
    "acdc": kept_only,
    "obert": kept_only,
    "str": kept_only,  # below its threshold a weight has no gradient
    "iss_p": dense_at_first,
    "movement": dense_gradient,
    "spartan": dense_gradient,
    "scl": dense_gradient,
    "dnw": dense_gradient,
    # sparse to sparse
    "set": kept_only,
    "dsr": kept_only,
    "mest": kept_only,
    "rigl": gradient_grown,
    "itop": gradient_grown,
    "srigl": gradient_grown,
    "granet": gradient_grown,
    "snfs": dense_gradient,
    "top_kast": wider_backward,
    # masks of weights that are not trained: their scores have a gradient everywhere
    "edge_popup": dense_gradient,
    "jackpots": dense_gradient,
    # N:M and other patterns
    "ste": dense_gradient,
    "sr_ste": dense_gradient,
    "sdgf": dense_gradient,
    "mdgf": dense_at_first,
    "cast": dense_at_first,
    "ast": dense_gradient,
    "bdwp": two_masks,
}


def relative_training_flops(
    config: Mapping[str, Any], masks: Sequence[Record], layers: Mapping[str, int], steps: int
) -> float:
    """Training FLOPs over those of the dense net, with the densities that the run really had.

    The densities of a record count from its step on, as the chunk before it ended with the update.

    Args:
      config: resolved.
      masks: the records of kind "masks"; none of a dense run.
      layers: path -> dense forward FLOPs of an example.
      steps: of the run.
    """
    if not masks:
        return 1.0
    starts = [record["step"] for record in masks] + [steps]
    durations = [after - start for start, after in itertools.pairwise(starts)]
    if not any(durations):  # it was only evaluated
        durations = [1] * len(durations)
    run = Spent(layers, [mean_density(record["density"]) for record in masks], durations, _arguments(config))
    whole = flops.dense_training(run.dense)
    return ACCOUNTING.get(config["method"], kept_only)(run) / whole if whole else 1.0


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(METHODS[config["method"]]).parameters
    return {name: p.default for name, p in parameters.items()} | dict(config["method_args"])


def mean_density(density: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """path -> mean over the seeds."""
    return {path: sum(per_seed) / len(per_seed) for path, per_seed in density.items()}
