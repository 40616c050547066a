"""Sparsity-informed adaptive pruning: how much a round prunes follows from the PQ index of what it trained."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sparsejax.leaves import Layout, named_leaves
from sparsejax.training.loop import Progress
from sparsejax.training.procedures.lottery import check_rewind, model_layout, rewind_point
from sparsejax.training.procedures.pruning import check_number, check_scope, full_masks
from sparsejax.training.procedures.rounds import Round, ended, opened
from sparsejax.transforms.pq import pq_index
from sparsejax.transforms.sap import sap_masks


def sap_rounds(
    config: ConfigDict | Mapping[str, Any],
    workdir: str | Path,
    *,
    rounds: int = 15,
    p: float = 0.5,
    q: float = 1.0,
    eta: float = 0.001,
    gamma: float = 1.0,
    beta: float = 0.9,
    scope: str = "global",
    rewind: int = 0,
    on_progress: Progress | None = None,
) -> Iterator[Round]:
    """SAP: rounds as of imp, but the share pruned follows from the PQ index of the trained weights.

    Of d kept weights with index I, at least m = ceil(d (1 + eta)^(-q/(q-p)) (1 - I)^(qp/(q-p))) are needed; a round
    takes floor(min(gamma (d - m), beta d)) away, those of smallest |w|. The others go back to step k.

    Args:
      config, workdir, rounds, rewind, on_progress: as `iterative_magnitude_pruning`.
      p, q: of the index, 0 < p <= 1, p < q.
      eta: how much larger the norm of what is pruned may be, >= 0.
      gamma: times the bound's share, > 0; the paper's runs take values near 1.
      beta: the largest share of a round, in (0, 1).
      scope: of what the index is taken, and what is ranked together: "global", "layer" or "neuron".

    Yields:
      `round_00` (dense), `round_01`, ...; `pq_index` in an entry is of the kept weights of each seed after the round's
      training, all layers together, and of "layers" apart.

    Raises:
      ConfigError: as `iterative_magnitude_pruning`.

    Example:
      >>> config = {"model_args": {"features": (16,)}, "epochs": 1, "seeds": 2}
      >>> [round.name for round in sap_rounds(config, "runs/sap", rounds=1)]
      ['round_00', 'round_01']

    Source: Diao et al. 2023, Pruning Deep Neural Networks from a Sparsity Perspective, arXiv:2302.05601.
    """
    check_number("rounds", rounds, lambda v: v >= 1, "an integer >= 1", whole=True)
    check_number("rewind", rewind, lambda v: v >= 0, "an integer >= 0", whole=True)
    check_number("p", p, lambda v: 0 < v <= 1, "a number in (0, 1]")
    check_number("q", q, lambda v: v > p, f"a number > p = {p}")
    check_number("eta", eta, lambda v: v >= 0, "a number >= 0")
    check_number("gamma", gamma, lambda v: v > 0, "a number > 0")
    check_number("beta", beta, lambda v: 0 < v < 1, "a number in (0, 1)")
    check_scope(scope)
    arguments = {
        "rounds": rounds, "p": p, "q": q, "eta": eta, "gamma": gamma, "beta": beta, "scope": scope, "rewind": rewind,
    }  # fmt: skip
    with opened("sap_rounds", config, workdir, arguments, on_progress, check=check_rewind(rewind)) as work:
        layout = model_layout(work.base)
        start = rewind_point(work, rewind)
        masks = full_masks(start.params, work.where)
        for number in range(rounds + 1):
            name = f"round_{number:02d}"
            if number:
                done = work.run(name, work.static(masks), start=start._replace(masks=masks), round=number)
            else:
                done = work.run(name, work.dense(), start=start, round=0)
            found = ended(done.workdir).params
            yield work.noted(done, **pq_of(found, masks, layout, p=p, q=q))
            masks = pruned(found, masks, layout, scope=scope, p=p, q=q, eta=eta, gamma=gamma, beta=beta)


def pruned(params: Any, masks: Any, layout: Layout | None, **how: Any) -> Any:
    """The masks of the next round by the rule of `sap_masks`, each seed for itself."""
    one = jax.jit(lambda weights, kept: sap_masks(weights, kept, layout=layout, **how))
    return _each_seed(one, params, masks)


def pq_of(params: Any, masks: Any, layout: Layout | None, **powers: float) -> dict[str, Any]:
    """{"pq_index": one number a seed, "layers": {path: one number a seed}}: of the kept weights."""
    one = jax.jit(
        lambda weights, kept: {
            scope: pq_index(weights, kept, scope, layout=layout, **powers) for scope in ("global", "layer")
        }
    )
    found = _each_seed(one, params, masks)
    layers = {path: index.tolist() for path, index in named_leaves(found["layer"])}
    return {"pq_index": found["global"].tolist(), "layers": layers}


def _each_seed(one: Callable[..., Any], params: Any, masks: Any) -> Any:
    """`one` of each seed's trees, the results stacked on the host."""
    seeds = len(jax.tree.leaves(masks)[0])
    found = [jax.device_get(one(*jax.tree.map(lambda leaf, i=i: leaf[i], (params, masks)))) for i in range(seeds)]
    return jax.tree.map(lambda *each: np.stack(each), *found)
