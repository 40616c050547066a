"""Reparametrized methods against NumPy: three trees of weights, eleven updates, masks equal bit by bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import reparametrized_oracles as rules
from contract_cells import quickly_compiled

import sparsejax
from sparsejax.transforms.affordable import affordable
from sparsejax.transforms.sinkhorn import Transport, at_fixed_point, soft_top

SHAPES = {"conv1": (3, 3, 2, 4), "dense1": (10, 12), "head": (12, 5)}
NAMES = list(SHAPES)
STEPS, RATE = 11, 0.25
compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)


class Run:
    """One tree: `params[t]`, `masks[t]`, `weights[t]`, `extras[t]`, `memory[t]` are what step t starts from."""

    def __init__(self, parts, grads):
        self.params, self.masks, self.weights, self.extras, self.memory = parts
        self.grads = grads


@functools.cache
def trees(*lead):
    draw = np.random.default_rng(7 + len(lead))
    numbers = lambda shape: np.stack([draw.normal(size=(*lead, *shape)) * scale for scale in (1.0, 0.3, 2.0)])
    return {name: {"kernel": jnp.asarray(numbers(shape), jnp.float32)} for name, shape in SHAPES.items()}


def runs(make):
    """Three trees, of other weights, scales, gradients and seeds each, trained in one program by `make(seed)`."""
    grads = trees(STEPS)

    def program(params, grads, seed):
        state = make(seed).init(params)

        def step(carry, grad):
            params, state = carry
            updates, after = make(0).update(grad, state, params)
            return (optax.apply_updates(params, updates), after), carry

        return jax.lax.scan(step, (params, state), grads)

    last, before = jax.device_get(jax.jit(jax.vmap(program))(trees(), grads, jnp.arange(3)))
    parts = [
        lambda pair: pair[0],
        lambda pair: pair[1].masks,
        lambda pair: pair[1].extra.weights,
        lambda pair: pair[1].extra.extras,
        lambda pair: pair[1].extra.memory,
    ]
    course = lambda part, k: [
        *[[x[k][t] for x in jax.tree.leaves(part(before))] for t in range(STEPS)],
        [x[k] for x in jax.tree.leaves(part(last))],
    ]
    grads = jax.device_get(jax.tree.leaves(grads))
    return [
        Run([course(part, k) for part in parts], [[g[k][t] for g in grads] for t in range(STEPS)]) for k in range(3)
    ]


def sgd():
    return optax.sgd(RATE)


def same(found, wanted, t):
    for name, mask, one in zip(NAMES, found, wanted, strict=True):
        np.testing.assert_array_equal(mask, one, err_msg=f"before step {t}, {name}")


def close(found, wanted, t, tolerance=2e-5):
    for i, (array, one) in enumerate(zip(found, wanted, strict=True)):
        np.testing.assert_allclose(array, one, tolerance, tolerance, err_msg=f"before step {t}, array {i}")


def changes(run):
    return sum(any((a != b).any() for a, b in zip(run.masks[t], run.masks[t + 1], strict=True)) for t in range(STEPS))


@pytest.mark.parametrize("across", [False, True], ids=["layers", "global"])
def test_edge_popup(across):
    """From the drawn scores on, the whole course in NumPy: frozen weights, sign(s) w g, the largest |s|."""
    by = "score" if across else "magnitude"
    options = {"distribution": "global"} if across else {}
    for run in runs(lambda seed: sparsejax.edge_popup(sgd(), sparsity=0.6, by=by, seed=seed, **options)):
        weights, scores = run.params[0], [s.astype(np.float64) for s in run.extras[0]]
        for name, s in zip(NAMES, scores, strict=True):
            bound = 1 / np.sqrt(np.prod(SHAPES[name][:-1]))
            assert 0.8 * bound < np.abs(s).max() <= bound and abs(s.mean()) < 0.3 * bound
        for t in range(STEPS + 1):
            if t:
                slopes = [w * g for w, g in zip(weights, run.grads[t - 1], strict=True)]
                signs = [1.0 if across else np.sign(s) for s in scores]
                scores = [s - RATE * sign * slope for s, sign, slope in zip(scores, signs, slopes, strict=True)]
            if across:
                wanted = rules.top_globally(scores, oracles.kept(sum(s.size for s in scores), 0.6))
            else:
                wanted = [oracles.top(np.abs(s), oracles.kept(s.size, 0.6)) for s in scores]
            same(run.masks[t], wanted, t)
            if t:
                close(run.params[t], [np.where(m, w, 0) for m, w in zip(wanted, weights, strict=True)], t, 0)
        assert changes(run) >= 5


def test_jackpots():
    """Scores of 1 and .99 by magnitude, and ever fewer of the wanted flips; nearly all of them at first."""
    for run in runs(lambda seed: sparsejax.jackpots(sgd(), sparsity=0.7, total_steps=13, seed=seed)):
        weights = run.params[0]
        masks = [oracles.top(np.abs(w), oracles.kept(w.size, 0.7)) for w in weights]
        scores = [np.where(m, np.float32(1), np.float32(0.99)).astype(np.float64) for m in masks]
        same(run.masks[0], masks, 0)
        close(run.extras[0], scores, 0, 0)
        held_back = 0
        for t in range(STEPS):
            grads = zip(scores, weights, run.grads[t], strict=True)
            scores = [s - RATE * w * g for s, w, g in grads]
            wanted = [oracles.top(s, int(m.sum())) for s, m in zip(scores, masks, strict=True)]
            masks = [rules.flipped(s, m, (1 - t / 13) ** 4) for s, m in zip(scores, masks, strict=True)]
            held_back += any((a != b).any() for a, b in zip(wanted, masks, strict=True))
            same(run.masks[t + 1], masks, t + 1)
            close(run.params[t + 1], [np.where(m, w, 0) for m, w in zip(masks, weights, strict=True)], t + 1, 0)
        assert changes(run) >= 5 and held_back >= 5


@pytest.mark.parametrize("across", [False, True], ids=["layers", "global"])
def test_movement(across):
    """- sum w g, of the weights in the state; those off the mask hold still, and come back with their value."""
    options = {"distribution": "global"} if across else {}
    every = 2 if across else 1
    make = lambda seed: sparsejax.movement(
        sgd(), sparsity=0.75, update_start=1, update_end=8, update_every=every, seed=seed, **options
    )
    returned = 0
    for run in runs(make):
        weights = [w.astype(np.float64) for w in run.params[0]]
        scores, masks = [np.zeros(w.shape) for w in weights], [np.ones(w.shape, bool) for w in weights]
        for t in range(STEPS):
            slopes = [w * g for w, g in zip(weights, run.grads[t], strict=True)]
            scores = [s - slope for s, slope in zip(scores, slopes, strict=True)]
            moved = zip(weights, run.grads[t], masks, strict=True)
            weights = [np.where(m, w - RATE * g, w) for w, g, m in moved]
            old = masks
            if every == 1 or t % 2 == 0 or (t > 1 and t < 8 and (t - 1) % 2 == 0) or t == 8:
                begin = 1 + (t - 1) // every * every if t >= 1 else 1
                share = oracles.cubic(0.75, 0.0, 1, 8, min(begin, 8) if t < 8 else 8)
                if across:
                    masks = rules.top_globally(scores, oracles.kept(sum(s.size for s in scores), share))
                else:
                    masks = [oracles.top(s, oracles.kept(s.size, share)) for s in scores]
            returned += sum(int((m & ~o).sum()) for m, o in zip(masks, old, strict=True))
            same(run.masks[t + 1], masks, t + 1)
            close(run.params[t + 1], [np.where(m, w, 0) for m, w in zip(masks, weights, strict=True)], t + 1)
        assert changes(run) >= 5
    assert returned


def test_scl():
    """Gradients over each output's root mean square, plus lambda; the sign of m is the mask."""
    for run in runs(lambda seed: sparsejax.scl(sgd(), penalty=0.1, mask_init=0.3)):
        weights = [w.astype(np.float64) for w in run.params[0]]
        numbers, masks = [np.full(w.shape, 0.3) for w in weights], [np.ones(w.shape, bool) for w in weights]
        for t in range(STEPS):
            slopes = [w * g for w, g in zip(weights, run.grads[t], strict=True)]
            sizes = [np.sqrt((s**2).mean(axis=tuple(range(s.ndim - 1)), keepdims=True)) for s in slopes]
            moved = zip(weights, run.grads[t], masks, strict=True)
            weights = [np.where(m, w - RATE * g, w) for w, g, m in moved]
            numbers = [n - RATE * (s / z + 0.1) for n, s, z in zip(numbers, slopes, sizes, strict=True)]
            masks = [n > 0 for n in numbers]
            same(run.masks[t + 1], masks, t + 1)
            close(run.params[t + 1], [np.where(m, w, 0) for m, w in zip(masks, weights, strict=True)], t + 1)
        assert changes(run) >= 5


def test_str():
    """The soft threshold, and both gradients: by a formula that finite differences confirm."""
    decay = 0.5
    inner = optax.chain(optax.add_decayed_weights(decay), sgd())
    for run in runs(lambda seed: sparsejax.str_(inner, threshold_init=-1.0)):
        weights = [w.astype(np.float64) for w in run.params[0]]
        taus = [-1.0] * len(weights)
        for t in range(STEPS):
            for w, tau, g in zip(weights, taus, run.grads[t], strict=True):
                confirmed(w, tau, g)
            pairs = [rules.soft_threshold_gradient(*each) for each in zip(weights, taus, run.grads[t], strict=True)]
            weights = [w - RATE * (gw + decay * w) for w, (gw, _) in zip(weights, pairs, strict=True)]
            taus = [tau - RATE * (gt + decay * tau) for tau, (_, gt) in zip(taus, pairs, strict=True)]
            wanted = [rules.soft_threshold(w, tau) for w, tau in zip(weights, taus, strict=True)]
            same(run.masks[t + 1], [w != 0 for w in wanted], t + 1)
            close(run.params[t + 1], wanted, t + 1, 1e-4)
            close([e.ravel()[0] for e in run.extras[t + 1]], taus, t + 1, 1e-4)
        assert changes(run) >= 5


def confirmed(weight, tau, grad, h=1e-6):
    """The formula against finite differences of sum g F(w, tau), along a random direction and along tau."""
    along = np.random.default_rng(0).normal(size=weight.shape)
    inner = lambda w, t: (grad * rules.soft_threshold(w, t)).sum()
    slope, of_tau = rules.soft_threshold_gradient(weight, tau, grad)
    far = np.abs(np.abs(weight) - rules.sigmoid(tau)) > 1e-4  # from the kink
    along = along * far
    found = (inner(weight + h * along, tau) - inner(weight - h * along, tau)) / (2 * h)
    np.testing.assert_allclose(found, (slope * along).sum(), 1e-4, 1e-5)
    if far.all():
        found = (inner(weight, tau + h) - inner(weight, tau - h)) / (2 * h)
        np.testing.assert_allclose(found, of_tau, 1e-4, 1e-5)


@pytest.mark.parametrize("costs", [(1.0, 1.0), (1.0, 3.0)])
def test_sinkhorn(costs):
    """The iteration as written in NumPy, ended by the same rule; without an end, the exact soft masks."""
    draw = np.random.default_rng(1)
    values = [np.abs(draw.normal(size=shape)).astype(np.float32) for shape in ((8, 6), (12,))]
    budget = 0.3 * sum(c * v.size for c, v in zip(costs, values, strict=True))
    for tolerance, most in ((0.01, 100), (0.0, 3000)):
        how = Transport(costs, None, most, tolerance)
        for beta in (1.0, 20.0):
            found = soft_top(how, values, jnp.float32(budget), jnp.float32(beta), jnp.float32(1.1))
            wanted = rules.sinkhorn(values, costs, budget, beta, 1.1, most, tolerance)
            close(found, wanted, 0, 1e-3)
            if not tolerance:
                close(found, rules.budgeted(values, costs, budget, beta), 0, 2e-3)


def test_the_gradient_of_a_soft_mask():
    """Against finite differences of the exact soft masks, with one budget for two arrays and with one for each row."""
    draw = np.random.default_rng(2)
    values = [np.abs(draw.normal(size=shape)) for shape in ((4, 6), (12,))]
    slopes = [draw.normal(size=v.shape) for v in values]

    def differences(values, slopes, costs, budget, beta, h=1e-5):
        found = [np.zeros_like(v) for v in values]
        for k, v in enumerate(values):
            for i in np.ndindex(v.shape):
                ends = []
                for sign in (1, -1):
                    moved = [u.copy() for u in values]
                    moved[k][i] += sign * h
                    masks = rules.budgeted(moved, costs, budget, beta)
                    ends.append(sum((g * m).sum() for g, m in zip(slopes, masks, strict=True)))
                found[k][i] = (ends[0] - ends[1]) / (2 * h)
        return found

    costs, budget, beta = (1.0, 2.0), 14.0, 5.0
    masks = rules.budgeted(values, costs, budget, beta)
    f32 = lambda arrays: [jnp.asarray(a, jnp.float32) for a in arrays]
    how = Transport(costs, None)
    _, pull = jax.vjp(lambda v: at_fixed_point(how, v, f32(masks), jnp.float32(beta)), f32(values))
    close(pull(f32(slopes))[0], differences(values, slopes, costs, budget, beta), 0, 1e-3)

    rows = [rules.budgeted([row], (1.0,), 2.0, beta)[0] for row in values[0]]
    how = Transport((1.0,), (1,))
    _, pull = jax.vjp(lambda v: at_fixed_point(how, v, f32([np.stack(rows)]), jnp.float32(beta)), f32(values[:1]))
    wanted = [differences([v], [g], (1.0,), 2.0, beta)[0] for v, g in zip(values[0], slopes[0], strict=True)]
    close(pull(f32(slopes[:1]))[0], [np.stack(wanted)], 0, 1e-3)


@pytest.mark.parametrize("across", [False, True], ids=["uniform", "global"])
def test_spartan(across):
    """Exact counts along a line, the cut of Sinkhorn's soft mask, its gradient, and what is frozen after step 8."""
    options = {} if across else {"distribution": sparsejax.distributions.uniform}
    make = lambda seed: sparsejax.spartan(
        sgd(), sparsity=0.7, total_steps=10, warmup_fraction=0.4, beta=10.0, seed=seed, **options
    )
    groups = [NAMES] if across else [[name] for name in NAMES]
    for run in runs(make):
        at = {name: i for i, name in enumerate(NAMES)}
        for t in range(STEPS):
            frozen, made = t - 1 >= 8, max(t - 1, 0)
            beta = 1 + 9 * min(made / 8, 1)
            for group in groups:
                ids = [at[name] for name in group]
                weights, grads, masks, soft = (
                    [oracles.exact(part[i]) for i in ids]
                    for part in (run.weights[t], run.grads[t], run.masks[t], run.memory[t])
                )
                new, new_masks, new_soft = (
                    [part[i] for i in ids] for part in (run.weights[t + 1], run.masks[t + 1], run.memory[t + 1])
                )
                slopes = [g * m for g, m in zip(grads, soft, strict=True)]
                if frozen:
                    slopes = [s * m for s, m in zip(slopes, masks, strict=True)]
                else:
                    spread = [m * (1 - m) for m in soft]
                    inside = [g * w for g, w in zip(grads, weights, strict=True)]
                    total = sum(s.sum() for s in spread)
                    common = sum((g * s).sum() for g, s in zip(inside, spread, strict=True)) / total if total else 0
                    slopes = [
                        a + beta * s * (g - common) * np.sign(w)
                        for a, s, g, w in zip(slopes, spread, inside, weights, strict=True)
                    ]
                close(new, [w - RATE * s for w, s in zip(weights, slopes, strict=True)], t, 2e-3)
                if t > 8:
                    for a, b in zip((*new_soft, *new_masks), (*soft, *masks), strict=True):
                        np.testing.assert_array_equal(a, b)
                else:
                    sizes = np.abs(np.concatenate([oracles.exact(w).ravel() for w in new]))
                    count = oracles.kept(sizes.size, 0.7 * min(t / 4, 1))
                    found = np.concatenate([m.ravel() for m in new_masks])
                    np.testing.assert_array_equal(found, oracles.top(sizes, count))
                    if count < sizes.size:
                        harder = 1 + 9 * min(t / 8, 1)
                        (wanted,) = rules.sinkhorn([sizes], (1.0,), count, harder, sizes[found].min())
                        close([np.concatenate([m.ravel() for m in new_soft])], [wanted], t, 1e-3)
                product = zip(new, new_soft, new_masks, strict=True)
                close([run.params[t + 1][i] for i in ids], [np.where(m, w * s, 0) for w, s, m in product], t, 1e-5)
        assert changes(run) >= 4


def test_what_a_budget_affords():
    """The best by value per cost, as many as fit; a threshold that is lower by one entry costs too much."""
    draw = np.random.default_rng(5)
    ratios, costs = [draw.random(shape).astype(np.float32) for shape in ((5, 4), (30,), (7,))], (1.0, 2.5, 4.0)
    for budget in (4.0, 20.0, 77.5, 123.0):
        masks = affordable([jnp.asarray(r) for r in ratios], costs, jnp.float32(budget))
        every = sorted(((v, c) for r, c in zip(ratios, costs, strict=True) for v in r.ravel()), reverse=True)
        spent = np.cumsum([cost for _, cost in every])
        least = every[int((spent <= budget).sum()) - 1][0]
        same(masks, [r >= least for r in ratios], 0)
