"""Top-KAST: sparse forward, a little less sparse backward, chosen among weights that are all kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from sparsejax.leaves import Layout, Where
from sparsejax.patterns import NM
from sparsejax.schedules import check_steps
from sparsejax.transforms.rules import choose_best
from sparsejax.transforms.start import Distribution, Patterns
from sparsejax.transforms.ste import check_rate
from sparsejax.transforms.straight_through import Latent, every_step, straight_through


def top_kast(
    inner: optax.GradientTransformation,
    *,
    sparsity: float | None = None,
    backward_sparsity: float | None = None,
    penalty: float | jax.Array = 1e-4,
    norm: str = "l2",
    update_every: int = 1,
    update_end: int | None = None,
    dense_dtype: Any = None,
    distribution: Distribution | None = None,
    pattern: Patterns = None,
    where: Where | None = None,
    layout: Layout | None = None,
    ties: str = "index",
    seed: int | jax.Array = 0,
    packed: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Top-KAST: the forward pass has the largest |v| of each layer, and a larger set of the largest has gradients.

    A = the top D of |v|, B the top D + M: the params are v on A; gradient, moments and step are those of B; the other
    weights stay as they are until they enter B. A penalty pulls B down, so that the others get a chance: lambda |v|^2/2
    on A and (lambda / D) |v|^2/2 on B without A, or |v| in place of |v|^2/2. D is the layer's density.
    Unlike other methods, the inner optimizer sees the dense weights of B, and moments are fresh off B, not off A.

    Args:
      inner: the optimizer.
      sparsity: 1 - D, fraction of zeros in [0, 1), at every step; may be left out where `pattern` is N:M.
      backward_sparsity: 1 - (D + M), in [0, sparsity]; None: B has twice the density of A. Of N:M it is rounded to
        whole weights in every M.
      penalty: lambda >= 0; may be injected.
      norm: "l2" or "l1".
      update_every: steps between choices of A and B (the paper: 1, or 100 with little loss).
      update_end: A and B stay from this step on; None: they never do.
      dense_dtype: of the dense weights; see `straight_through`.
      distribution: None is uniform.
      pattern, where, layout, ties, seed, packed: see `sparse_wrapper`.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> tx = top_kast(optax.sgd(0.1, momentum=0.9), sparsity=0.9, backward_sparsity=0.8, update_every=100)

    Source: Jayakumar et al. 2020, arXiv:2106.03517.
    """
    check_steps(1, update_every=update_every)
    if update_end is not None:
        check_steps(0, update_end=update_end)
    check_rate("penalty", penalty)
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm={norm!r}: 'l1' or 'l2'")
    final = 1 - pattern.n / pattern.m if isinstance(pattern, NM) else sparsity
    if backward_sparsity is None:
        backward_sparsity = max(0.0, 2 * (final or 0.0) - 1)
    if final is not None and not 0 <= backward_sparsity <= final:
        raise ValueError(f"backward_sparsity={backward_sparsity} must lie in [0, sparsity={final}]")

    def pull(latent: Latent) -> jax.Array:
        slope = latent.weight if norm == "l2" else jnp.sign(latent.weight)
        return penalty * jnp.where(latent.mask, slope, slope / latent.density.astype(slope.dtype))

    return straight_through(
        inner,
        choose_best,
        plan=every_step(update_end, every=update_every),
        gradient_term=pull,
        backward_sparsity=backward_sparsity,
        dense_dtype=dense_dtype,
        sparsity=sparsity,
        distribution=distribution,
        pattern=pattern,
        where=where,
        layout=layout,
        ties=ties,
        seed=seed,
        packed=packed,
    )
