"""Straight-through methods in plain NumPy, written from the papers' rules; arrays as in `oracles`.

SGD with a learning rate that is a power of two: then float32 has one rounding a step, the same in any program.
"""

import numpy as np
from oracles import exact, kept, top


def course(weights, grads, rate, choose, masks, *, term=None, share=None, shrink=None, moves=None):
    """The params and masks after every step, of dense weights v that are trained at the masked ones.

    Args:
      weights: one array a leaf: the dense weights at the begin.
      grads: of each step, one array a leaf.
      choose: `(t, v, mask) -> mask` of one leaf, after step t.
      masks: at the begin.
      term: `(v, mask, t) -> array` added to the gradient.
      share: `t -> [0, 1]`: the params are so much of v off the mask.
      shrink: `t -> factor` of v off the mask.
      moves: `(v, t) -> bool array` of what moves, chosen with the masks.
    """
    dense, number = [w.copy() for w in weights], np.float32
    moving = [None if moves is None else moves(v, m, -1) for v, m in zip(dense, masks, strict=True)]
    found = []
    for t, leaves in enumerate(grads):
        params, after, allowed = [], [], []
        for v, g, m, b in zip(dense, leaves, masks, moving, strict=True):
            g = g if term is None else g + term(v, m, t)
            step = number(-rate) * g
            v = v + (step if b is None else np.where(b, step, number(0)))
            m = choose(t, v, m)
            if shrink is not None:
                v = np.where(m, v, number(shrink(t)) * v)
            params.append(np.where(m, v, number(0 if share is None else share(t)) * v))
            after.append((v, m))
            allowed.append(None if moves is None else moves(v, m, t))
        dense, masks, moving = [v for v, _ in after], [m for _, m in after], allowed
        found.append((params, masks))
    return found


def best(v, sparsity):
    """The largest |v| of a layer."""
    return top(np.abs(exact(v)), kept(v.size, sparsity))


def groups(v, n, m, axis=-2):
    """The n largest |v| of every m along an axis."""
    moved = np.moveaxis(np.abs(exact(v)), axis, -1)
    mask = np.stack([top(run, n) for run in moved.reshape(-1, m)]).reshape(moved.shape)
    return np.moveaxis(mask, -1, axis)


def tiles(v, n, m, tile):
    """The same, for `tile` neighbours on the last axis together, by the sum of their |v|."""
    score, mask = np.abs(exact(v)), np.zeros(v.shape, bool)
    for begin in range(0, v.shape[-1], tile):
        part = slice(begin, begin + tile)
        mask[..., part] = groups(score[..., part].sum(-1, keepdims=True), n, m)
    return mask


def neurons(v, sparsity):
    """As many inputs for every output (the last axis), the largest |v| of each."""
    flat = np.abs(exact(v)).reshape(-1, v.shape[-1])
    mask = np.stack([top(column, kept(len(flat), sparsity)) for column in flat.T], -1)
    return mask.reshape(v.shape)


def channels(v, sparsity):
    """The outputs of largest mean |v|."""
    means = np.abs(exact(v)).reshape(-1, v.shape[-1]).mean(0)
    return np.broadcast_to(top(means, kept(v.shape[-1], sparsity)), v.shape)


def blocks(v, sparsity, rows, columns):
    """Blocks of inputs x outputs (the last two axes, which these sizes divide) of largest mean |v|."""
    *lead, a, b = v.shape
    cut = np.abs(exact(v)).reshape(*lead, a // rows, rows, b // columns, columns)
    means = cut.mean((-3, -1))
    mask = top(means, kept(means.size, sparsity))
    return np.repeat(np.repeat(mask, rows, -2), columns, -1)


def frames(schedule, n, m):
    """The (n, m) of each frame of SdGf."""
    if schedule == "geometric":
        return [(8 * n, 8 * m), (4 * n, 4 * m), (2 * n, 2 * m), (n, m)]
    if schedule == "densify":
        return [(n, 8 * m), (n, 4 * m), (n, 2 * m), (n, m)]
    found, half = [(m - 1, m)], m // 2
    while half > n:
        found, half = [*found, (half, m)], half // 2
    return [*found, (n, m)]


def frame_at(number, start, end, t):
    """Which of so many frames of equal length, from start to end, holds at step t."""
    return min(int((t - start) * number / (end - start)), number - 1)
