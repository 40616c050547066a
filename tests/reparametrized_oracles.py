"""Rules of reparametrized methods in plain NumPy, written from the papers' rules; arrays as in `oracles`."""

import math

import numpy as np
from oracles import exact, top, top_among


def sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -np.asarray(x, np.float64)))


def soft_threshold(weight, tau):
    """STR: sign(w) max(|w| - sigmoid(tau), 0)."""
    weight = exact(weight)
    return np.sign(weight) * np.maximum(np.abs(weight) - sigmoid(tau), 0)


def soft_threshold_gradient(weight, tau, grad):
    """Of w and of the layer's tau: the weights above the threshold count."""
    above = np.abs(exact(weight)) > sigmoid(tau)
    slope = sigmoid(tau) * (1 - sigmoid(tau))
    return exact(grad) * above, -(exact(grad) * above * np.sign(exact(weight))).sum() * slope


def budgeted(values, costs, budget, beta):
    """m = sigmoid(beta v / c + mu) with sum c m = budget, by bisection of mu to the last digit; float64."""
    values = [np.asarray(v, np.float64) for v in values]
    masks = lambda mu: [sigmoid(beta * v / c + mu) for v, c in zip(values, costs, strict=True)]
    low, high = -1e5, 1e5
    for _ in range(200):
        middle = (low + high) / 2
        spent = sum(c * m.sum() for c, m in zip(costs, masks(middle), strict=True))
        low, high = (middle, high) if spent < budget else (low, middle)
    return masks((low + high) / 2)


def sinkhorn(values, costs, budget, beta, threshold, most=100, tolerance=0.01):
    """The soft masks of the alternating updates, ended by the relative change of sum m v."""
    z = [beta * (np.asarray(v, np.float64) / c - threshold) for v, c in zip(values, costs, strict=True)]
    soft = lambda mu: [sigmoid(x + mu) for x in z]
    worth = lambda mu: sum((m * v).sum() for m, v in zip(soft(mu), values, strict=True))
    mu, last = 0.0, worth(0.0)
    for _ in range(most):
        nu = [math.log(c) - np.logaddexp(0.0, x + mu) for x, c in zip(z, costs, strict=True)]
        terms = np.concatenate([(x + n).ravel() for x, n in zip(z, nu, strict=True)])
        mu = math.log(budget) - np.logaddexp.reduce(terms)
        now = worth(mu)
        if abs(now - last) <= tolerance * abs(last):
            break
        last = now
    return soft(mu)


def flipped(scores, mask, share):
    """Lottery Jackpots: of the flips that the top scores ask for, ceil(share n), the most wanted first."""
    wanted = top(scores, int(mask.sum()))
    comes, goes = wanted & ~mask, mask & ~wanted
    n = math.ceil(share * int(comes.sum()) * (1 - 2e-7))
    return mask & ~top_among(-exact(scores), goes, n) | top_among(scores, comes, n)


def top_globally(scores, count):
    """The masks of the `count` largest scores of all arrays together, the first array first among equals."""
    flat = top(np.concatenate([exact(s).ravel() for s in scores]), count)
    parts = np.split(flat, np.cumsum([s.size for s in scores])[:-1])
    return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]
