"""The methods' rules in plain NumPy, from the papers and not from this library: what the contract test compares with.

Weights, gradients and masks are lists of arrays, one per masked leaf. Scores are compared in float64, which holds every
float32, bfloat16 and float16 exactly (subnormals too). Equal scores: the lowest flat index is kept first.
"""

import math

import numpy as np


def kept(size, sparsity):
    """How many of `size` weights stay: size - floor(sparsity size)."""
    return size - math.floor(sparsity * size + 1e-6)


def exact(array):
    """Any floating array as float64, without rounding and without flushing subnormals."""
    array = np.asarray(array)
    return array.astype(np.float32).astype(np.float64) if array.dtype.itemsize < 4 else array.astype(np.float64)


def top(scores, k):
    """The mask of the k largest scores; NaN last, the lowest index first among equals."""
    flat = exact(scores).ravel() + 0.0  # -0 becomes +0
    order = sorted(range(flat.size), key=lambda i: (math.isnan(flat[i]), -flat[i] if flat[i] == flat[i] else 0.0, i))
    mask = np.zeros(flat.size, bool)
    mask[order[:k]] = True
    return mask.reshape(np.shape(scores))


def top_among(scores, allowed, k):
    """The k largest scores among allowed places only."""
    scores = np.where(allowed, exact(scores), -np.inf)
    return top(scores, min(k, int(allowed.sum()))) & allowed


def n_of_m(weight, n, m, axis=-2):
    """The mask of the n largest |w| of every m consecutive ones along an axis, group by group."""
    rows = np.moveaxis(np.abs(exact(weight)), axis, -1)
    mask = np.zeros(rows.shape, bool)
    for place in np.ndindex(*rows.shape[:-1], rows.shape[-1] // m):
        group = (*place[:-1], slice(place[-1] * m, (place[-1] + 1) * m))
        mask[group] = top(rows[group], n)
    return np.moveaxis(mask, -1, axis)


def erk(shapes, density):
    """ERK densities epsilon (sum of sizes / product), or 1 for the layers where that would pass 1.

    epsilon = [sum over free layers (N - floor(s N)) - over dense floor(s N)] / (over free ones raw N).
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / math.prod(shape) for shape in shapes]
    dense = set()
    while True:
        free = [i for i in range(len(shapes)) if i not in dense]
        zeros = [math.floor((1 - density) * size + 1e-6) for size in sizes]
        budget = sum(sizes[i] - zeros[i] for i in free) - sum(zeros[i] for i in dense)
        epsilon = budget / sum(raw[i] * sizes[i] for i in free)
        over = [i for i in free if epsilon * raw[i] > 1]
        if not over:
            return [1.0 if i in dense else epsilon * raw[i] for i in range(len(shapes))]
        largest = max(raw[i] for i in over)
        dense |= {i for i in over if raw[i] == largest}


def cubic(target, initial, start, end, step):
    """The sparsity of gradual magnitude pruning at a step of its grid."""
    if step >= end:
        return target
    return target + (initial - target) * (1 - (step - start) / (end - start)) ** 3


def fraction(alpha, end, step, start=0):
    """RigL's drop fraction: (alpha / 2) (1 + cos(pi t / T_end)), or alpha where it never ends."""
    return alpha if end is None else alpha / 2 * (1 + math.cos(math.pi * (step - start) / (end - start)))


def magnitude(weights, masks, counts):
    """Layer-wise magnitude pruning; what is pruned stays pruned."""
    return [top_among(np.abs(exact(w)), m, k) for w, m, k in zip(weights, masks, counts, strict=True)]


def global_magnitude(weights, masks, count):
    """The `count` largest |w| over all leaves together."""
    flat = top_among(
        np.concatenate([np.abs(exact(w)).ravel() for w in weights]), np.concatenate([m.ravel() for m in masks]), count
    )
    ends = np.cumsum([w.size for w in weights])[:-1]
    return [part.reshape(w.shape) for part, w in zip(np.split(flat, ends), weights, strict=True)]


def survivors(weight, mask, share, rounding=math.floor):
    """The active weights that are left when floor(share n) of the n smallest |w| are dropped."""
    n = int(mask.sum())
    return top_among(np.abs(exact(weight)), mask, n - rounding(share * n + 1e-6))


def signed_survivors(weight, mask, share):
    """SET: the smallest weights >= 0 and the largest weights < 0 are dropped apart, the share of each."""
    negative = exact(weight) < 0
    return survivors(weight, mask & ~negative, share) | survivors(weight, mask & negative, share)


def rigl(weight, grad, mask, share):
    """Drops the smallest |w| of a layer and grows as many largest |g| among all that are not active then."""
    left = survivors(weight, mask, share)
    return left | top_among(np.abs(exact(grad)), ~left, int(mask.sum() - left.sum()))


def is_rigl_step(step, every, end):
    """t mod Delta T = 0, 0 < t < T_end."""
    return step > 0 and step % every == 0 and (end is None or step < end)


def is_ramp_step(step, start, end, every, initial=0.0):
    """t_0, t_0 + Delta T, ... up to t_end, and t_end itself; t_0 only where the ramp starts above 0."""
    inside = start <= step < end and (step - start) % every == 0
    return step == end or (inside and (step > start or initial > 0))
