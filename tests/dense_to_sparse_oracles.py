"""Rules of dense-to-sparse methods in plain NumPy, written from the papers' rules; arrays as in `oracles`."""

import math

import numpy as np
from oracles import exact, top, top_among


def largest(weights, counts):
    """The largest |w| of each layer, of all its weights."""
    return [top(np.abs(exact(w)), k) for w, k in zip(weights, counts, strict=True)]


def largest_globally(weights, count):
    """The largest |w| of all layers together, of all their weights."""
    flat = top(np.concatenate([np.abs(exact(w)).ravel() for w in weights]), count)
    ends = np.cumsum([w.size for w in weights])[:-1]
    return [part.reshape(w.shape) for part, w in zip(np.split(flat, ends), weights, strict=True)]


def pq_index(values, p=0.5, q=1.0):
    """1 - (mean |w|^p)^(1/p) / (mean |w|^q)^(1/q) of a vector; what lies just below 0 is 0."""
    size = np.abs(exact(values))
    index = 1 - np.mean(size**p) ** (1 / p) / np.mean(size**q) ** (1 / q)
    return 0.0 if -1e-5 < index < 0 else index


def sap_kept(values, p=0.5, q=1.0, gamma=1.0, eta=0.0, beta=0.9):
    """How many of d active weights stay."""
    d = len(values)
    share = (1 + eta) ** (-q / (q - p)) * (1 - pq_index(values, p, q)) ** (q * p / (q - p))
    m = math.ceil(d * share - 1e-6)
    return d - math.floor(d * min(max(gamma * (1 - m / d), 0), beta) + 1e-6)


def sap(weights, masks, scope, **numbers):
    """What is pruned stays pruned; a neuron is an index of the last axis."""
    if scope == "global":
        active = np.concatenate([w[m] for w, m in zip(weights, masks, strict=True)])
        flat = top_among(
            np.concatenate([np.abs(exact(w)).ravel() for w in weights]),
            np.concatenate([m.ravel() for m in masks]),
            sap_kept(active, **numbers),
        )
        ends = np.cumsum([w.size for w in weights])[:-1]
        return [part.reshape(w.shape) for part, w in zip(np.split(flat, ends), weights, strict=True)]
    new = []
    for weight, mask in zip(weights, masks, strict=True):
        if scope == "layer":
            new.append(top_among(np.abs(exact(weight)), mask, sap_kept(weight[mask], **numbers)))
            continue
        columns = [
            top_among(np.abs(exact(weight[..., i])), mask[..., i], sap_kept(weight[..., i][mask[..., i]], **numbers))
            for i in range(mask.shape[-1])
        ]
        new.append(np.stack(columns, axis=-1))
    return new


def blocks_of(shape, size):
    """Flat indices of the blocks: `size` weights after one another, output (last axis) by output."""
    order = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), -1, 0).ravel()
    return [order[i : i + size] for i in range(0, len(order), size)]


def inverse_fisher(gradients, block, damp):
    """(damp I + (1 / m) sum of g gᵀ)^-1 of one block, from an explicit matrix; gradients: (m, weights of the leaf)."""
    g = gradients[:, block]
    return np.linalg.inv(damp * np.eye(len(block)) + g.T @ g / len(g))


def obert(weights, masks, counts, gradients, size, damp):
    """New masks and weights. `counts`: one a leaf, or one number for all; `gradients[leaf]`: (m, *shape)."""
    weights = [np.where(m, exact(w), 0.0) for w, m in zip(weights, masks, strict=True)]
    inverses, scores = [], []
    for weight, mask, grads in zip(weights, masks, gradients, strict=True):
        flat = np.where(mask, exact(grads), 0.0).reshape(len(grads), -1)
        blocks = blocks_of(weight.shape, size)
        found = [inverse_fisher(flat, block, damp) for block in blocks]
        score = np.zeros(weight.size)
        for block, inverse in zip(blocks, found, strict=True):
            score[block] = weight.ravel()[block] ** 2 / (2 * np.diag(inverse))
        inverses.append((blocks, found))
        scores.append(score.reshape(weight.shape))
    if np.ndim(counts):
        new = [top_among(s, m, k) for s, m, k in zip(scores, masks, counts, strict=True)]
    else:
        every = top_among(
            np.concatenate([s.ravel() for s in scores]), np.concatenate([m.ravel() for m in masks]), counts
        )
        ends = np.cumsum([w.size for w in weights])[:-1]
        new = [part.reshape(w.shape) for part, w in zip(np.split(every, ends), weights, strict=True)]
    changed = []
    for weight, old, mask, (blocks, found) in zip(weights, masks, new, inverses, strict=True):
        value, gone = weight.ravel().copy(), (old & ~mask).ravel()
        for block, inverse in zip(blocks, found, strict=True):
            for place in np.flatnonzero(gone[block]):
                value[block] -= weight.ravel()[block[place]] / inverse[place, place] * inverse[:, place]
        changed.append(np.where(mask, value.reshape(weight.shape), 0.0))
    return new, changed
