"""Selection in many slices of a leaf on one device: the keys are laid out slice after slice, then counted.

Where the slices are columns, as the inputs of a neuron are, a count that walks down them takes one key from each piece
of memory that it touches, in every pass. Laid out once as rows, keys are counted many at a time.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.selection import devices
from sparsejax.selection.counts import WORD, Count
from sparsejax.selection.keys import Scores
from sparsejax.selection.request import AllBut, Chosen, Request, marked
from sparsejax.selection.slices import cuts_of, flat_index, kept_shape
from sparsejax.selection.stored import stored


def fits(request: Request) -> bool:
    """Whether a request can be answered here: several slices, ties by index, no leaf that can be sharded."""
    several = request.slices > 1 and 0 < math.prod(request.shape) < WORD // 2
    return request.ties is None and several and devices.on_one_device() and devices.on_processor()


def select_rows(request: Request) -> Chosen:
    """The answer to one request."""
    scores, axes = marked(request), request.axes
    shape = scores.example.shape
    outer = [axis for axis in range(len(shape)) if axis not in axes]
    size = math.prod(shape[axis] for axis in axes)
    each = kept_shape(shape, axes)
    # A stored array is transposed three times as fast as one that is computed on the way.
    keys = stored(lambda: scores.keys(*scores.operands), lambda: jnp.zeros(shape, scores.example.dtype))
    laid = keys.transpose(*outer, *axes).reshape(-1, size)
    rows = Scores(lambda keys: keys, (lax.optimization_barrier(laid),))
    keep = request.keep
    if isinstance(keep, Count):
        keep = Count(*(word if word.ndim == 0 else jnp.broadcast_to(word, each).reshape(-1, 1) for word in keep))
    elif isinstance(keep, AllBut) and jnp.ndim(keep.fraction):
        keep = keep._replace(fraction=jnp.broadcast_to(keep.fraction, each).reshape(-1, 1))
    cuts = cuts_of(rows, keep, (1,))
    # The barrier keeps XLA from storing the keys that were laid out for the mask.
    read, cuts = lax.optimization_barrier((scores.operands, cuts))
    cuts = jax.tree.map(lambda x: x.reshape(each) if x.ndim else x, cuts)
    keys, index = scores.keys(*read), flat_index(shape, axes, jnp.uint32(0))
    mask = (keys > cuts.key) | ((keys == cuts.key) & (index < cuts.bound))
    return Chosen(mask & cuts.some, cuts.candidates, cuts.refused)
