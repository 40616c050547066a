"""Rules of dynamic sparse training in plain NumPy, written from the papers' rules; arrays as in `oracles`."""

import math

import numpy as np
from oracles import exact, global_magnitude, survivors, top_among


def up(value):
    """Ceil, after a sum that `oracles.survivors` has rounded up by 1e-6."""
    return math.ceil(value - 2e-6)


def falling(alpha, final, end, step):
    """f_T + ((f_0 - f_T) / 2) (1 + cos(pi t / T))."""
    return final + (alpha - final) / 2 * (1 + math.cos(math.pi * step / end))


def stair(value, end, step):
    """Whole until 3/4 of the end, half until the end, then 0."""
    return value * (1.0 if step < end * 3 // 4 else 0.5 if step < end else 0.0)


def grown(left, scores, count):
    """The survivors and, up to `count`, the best of all others."""
    return left | top_among(scores, ~left, count - int(left.sum()))


def moved(weight, grad, mask, share):
    """ceil(share n) smallest |w| go, as many largest |g| come."""
    left = survivors(weight, mask, share, up)
    return grown(left, np.abs(exact(grad)), int(mask.sum()))


def granet(weights, grads, masks, count, share):
    """One |w| threshold over all layers, then each layer moves a share."""
    masks = global_magnitude(weights, masks, count)
    return [moved(w, g, m, share) for w, g, m in zip(weights, grads, masks, strict=True)]


def dealt(amount, scores, room, most):
    """The total in proportion to scores: the first i get floor(total * their share); the overflow again, where there is
    room; and when there is none left, where there is any place at all."""
    given = np.zeros(len(scores), int)
    while amount > 0:
        space = room - given if (given < room).any() else most - given
        if not (space > 0).any():
            break
        weight = np.where(space > 0, scores, 0.0)
        weight = weight if weight.sum() > 0 else (space > 0).astype(float)
        upto = np.floor(amount * np.cumsum(weight) / weight.sum() + 1e-6).astype(int)
        upto[-1] = amount
        more = np.minimum(np.diff(upto, prepend=0), space)
        given, amount = given + more, amount - int(more.sum())
    return given


def snfs(weights, momenta, masks, share):
    """Each layer drops ceil(share n); the total goes by the mean |m| of active weights, to the largest |m|."""
    left = [survivors(w, m, share, up) for w, m in zip(weights, masks, strict=True)]
    size = np.array([m.size for m in masks])
    alive = np.array([int(m.sum()) for m in left])
    means = np.array([np.abs(exact(v))[m].mean() if m.any() else 0.0 for v, m in zip(momenta, masks, strict=True)])
    total = sum(int(m.sum()) for m in masks) - int(alive.sum())
    more = dealt(total, means, np.floor(0.99 * (size - alive) + 1e-6).astype(int), size - alive)
    counts = alive + more
    return [grown(m, np.abs(exact(v)), k) for m, v, k in zip(left, momenta, counts, strict=True)]


def dsr(weights, masks, lots, threshold, share):
    """All |w| below the threshold go; as many come at random, in proportion to what survived; the next threshold."""
    left = [m & (np.abs(exact(w)) >= float(threshold)) for w, m in zip(weights, masks, strict=True)]
    kept = sum(int(m.sum()) for m in masks)
    alive = np.array([int(m.sum()) for m in left])
    dropped, wanted = kept - int(alive.sum()), share * kept
    free = np.array([int((~m).sum()) for m in masks])
    places = np.array([int((~m).sum()) for m in left])
    more = dealt(dropped, alive.astype(float), free, places)
    new = []
    for before, after, lot, number in zip(masks, left, lots, more, strict=True):
        first = top_among(lot, ~before, min(number, int((~before).sum())))
        rest = top_among(lot, before & ~after, number - int(first.sum()))
        new.append(after | first | rest)
    factor = 0.5 if dropped > 1.1 * wanted else 2.0 if dropped < 0.9 * wanted else 1.0
    return new, np.float32(threshold * factor)


def mest(weight, grad, mask, lot, lower, upper, lam):
    """The `lower` best by |w| + lambda |g| stay, the rest up to `upper` comes at random."""
    score = np.abs(weight) + np.float32(lam) * np.abs(grad)
    return grown(top_among(score, mask, lower), lot, upper)


def srigl(weight, grad, mask, share, gamma, ablate=True):
    """Constant fan-in with ablation; the last axis is the neurons'."""
    flat = lambda x: np.asarray(x).reshape(-1, x.shape[-1])
    w, g, m = np.abs(exact(flat(weight))), np.abs(exact(flat(grad))), flat(mask)
    number, (room, neurons) = int(m.sum()), m.shape
    left = survivors(w, m, share)
    counts = m.sum(0)
    if ablate:
        salient = grown(left, g, number).sum(0)
        fan = number // int((counts > 0).sum())
        least = max(1, math.ceil(gamma * fan - 1e-6))
        while (salient >= least).sum() < -(-number // room):
            least -= 1
        alive = np.flatnonzero(salient >= least)
        counts = np.zeros(neurons, int)
        counts[alive] = number // len(alive)
        counts[alive[: number % len(alive)]] += 1
    new = np.zeros_like(m)
    for i, count in enumerate(counts):
        stays = top_among(w[:, i], left[:, i], count)
        new[:, i] = stays | top_among(g[:, i], ~left[:, i], count - int(stays.sum()))
    return new.reshape(mask.shape)


__all__ = ["dealt", "dsr", "falling", "granet", "mest", "moved", "snfs", "srigl", "stair"]
