"""Contract rows of reparametrized methods: what their definition changes, and what is checked in its place.

Clause 2: STR and SCL promise no count. Clauses 3 and 4: the inner optimizer steps on latent weights (all of them, those
on the mask, or none), with the gradient that comes back through the method. Clause 7: a mask stays where gradient or
latent is not finite; the mask to stay is the lane's own. Clause 8: masks are chosen at every step, outside any branch.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import reparametrized_oracles as rules
from contract_cases import INNERS, LAYOUTS, STEPS, Row, _always, _fixed, _level, _of, _ramp, _uniform

import sparsejax

TOLERANCE = {"float32": (2e-5, 1e-6), "bfloat16": (2e-2, 1e-2)}


def _without_sparsity(method, **options):
    """A factory that takes neither sparsity nor seed, as the table calls it."""

    def make(inner, form, *, sparsity, seed=0):
        del sparsity, seed
        return method(inner, layout=LAYOUTS.get(form), **options)

    return make


def after(lane, t, part):
    """The latent weights, extras or memories of the masked leaves that step t leaves; t = -1: of init."""
    if t < 0:
        return jax.tree.leaves(getattr(lane.state.extra, part))
    return [leaf[t] for leaf in jax.tree.leaves(getattr(lane.after_state.extra, part))]


def check_masks(choose, value):
    """Masks by the oracle from the new latents, and params that are the oracle's function of them."""

    def check(row, lane):
        relative, absolute = TOLERANCE[np.dtype(row.dtype).name]
        for t in range(STEPS):
            wanted = choose(row, lane, t)
            for one, mask in zip(wanted, lane.masks[t + 1], strict=True):
                np.testing.assert_array_equal(mask, one, err_msg=f"step {t}")
            weights, extras, memory = (after(lane, t, part) for part in ("weights", "extras", "memory"))
            for i, found in enumerate(lane.weights[t + 1]):
                pick = lambda part, i=i: part[i] if part else None
                made = value(oracles.exact(weights[i]), pick(extras), pick(memory), lane.masks[t + 1][i])
                np.testing.assert_allclose(oracles.exact(found), made, relative, absolute, err_msg=f"step {t}")

    return check


def check_inner(pull, soft):
    """The inner optimizer's own steps on the recorded latents, from the gradients that the oracle pulls back."""

    def check(row, lanes):
        inner = INNERS[row.inner]
        for lane in lanes:
            params = jax.tree.leaves(lane.params)
            names = dict(zip(lane.chosen, range(len(lane.chosen)), strict=True))
            seen, trees, masks = [], [], []
            for t in range(STEPS):
                weights, extras = after(lane, t - 1, "weights"), after(lane, t - 1, "extras")
                tree, grads, here = list(lane.every_weight[t]), [g[t] for g in jax.tree.leaves(lane.grads_tree)], []
                for i in range(len(params)):
                    mask = lane.every_mask[t][i]
                    here.append(np.ones(params[i].shape, bool) if mask is None else mask)
                    if i in names:
                        k = names[i]
                        tree[i] = weights[k] if soft else np.where(mask, tree[i], weights[k])
                        grads[i], frozen = pull(tree[i], extras[k] if extras else None, mask, grads[i])
                        here[i] = np.zeros_like(mask) if frozen else np.ones_like(mask) if soft else mask
                seen.append(grads)
                trees.append(tree)
                masks.append(here)
            check_steps(row, lane, inner, seen, trees, masks)

    return check


def check_steps(row, lane, inner, grads, trees, masks):
    stack = lambda steps, dtypes: [
        jnp.asarray(np.stack(leaf).astype(d)) for leaf, d in zip(zip(*steps, strict=True), dtypes, strict=True)
    ]
    dtypes = [leaf.dtype for leaf in trees[0]]
    xs = stack(grads, dtypes), stack(trees, dtypes), stack(masks, [bool] * len(dtypes))
    lay = lambda tree, masks: [jnp.where(m, x, jnp.zeros_like(x)) for x, m in zip(tree, masks, strict=True)]
    fresh = lambda x, m: jnp.where(m, x, jnp.asarray(inner.start, x.dtype))

    def step(state, now):
        grads, tree, masks = now
        state = optax.tree_utils.tree_map_params(inner.make(), fresh, state, masks)
        steps, state = inner.make().update(lay(grads, masks), state, lay(tree, masks))
        new = [jnp.where(m, w + u, w) for w, u, m in zip(tree, steps, masks, strict=True)]
        return state, (new, state)

    begin = inner.make().init(lay([jnp.asarray(x) for x in trees[0]], [m[0] for m in xs[2]]))
    _, (new, states) = jax.jit(lambda s, x: jax.lax.scan(step, s, x))(begin, xs)
    relative, absolute = TOLERANCE[np.dtype(row.dtype).name]
    for one, mine in zip(jax.tree.leaves(states), jax.tree.leaves(lane.after_state.inner_state), strict=True):
        np.testing.assert_allclose(oracles.exact(mine), oracles.exact(one), relative, absolute)
    for t in range(STEPS):
        found = list(lane.every_weight[t + 1])
        for i, weight in zip(lane.chosen, after(lane, t, "weights"), strict=True):
            found[i] = weight
        for one, mine in zip(new, found, strict=True):
            np.testing.assert_allclose(oracles.exact(mine), oracles.exact(one[t]), relative, absolute)


def check_non_finite(row, lanes):
    """Clause 7: a leaf with a bad gradient, or a bad weight, keeps its own mask, and is counted; extras stay finite."""
    t, lane, plain = STEPS - 1, lanes["gradient"], lanes["plain"]
    assert (lane.skipped[t], lane.skipped[t + 1]) == (0, 1)
    assert not np.isfinite(lane.grads[t][0].astype(np.float32)).all()
    np.testing.assert_array_equal(lane.masks[t + 1][0], lane.masks[t][0])
    for i in range(1, len(lane.chosen)):
        wanted = plain.masks[t + 1][i] if row.layerwise else lane.masks[t][i]
        np.testing.assert_array_equal(lane.masks[t + 1][i], wanted)
    lane = lanes["weight"]
    np.testing.assert_array_equal(lane.masks[1][0], lane.masks[0][0])
    assert lane.skipped[:2] == [0, 1]
    for bad in ("gradient", "weight"):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lanes[bad].after_state.extra.extras))
    for good in ("plain", "seed", "other", "third", "late"):
        assert lanes[good].skipped[-1] == 0


def check_branch(row, lane):
    """In place of clause 8: one program for all sparsities, which the state alone decides."""
    grads = jax.tree.map(lambda g: g[0], lane.grads_tree)
    make = lambda s: row.make(INNERS[row.inner].make(), row.form, sparsity=s, seed=3)
    traced = [str(jax.make_jaxpr(make(s).update)(grads, lane.state, lane.params)) for s in (row.target, row.other)]
    assert re.sub("0x[0-9a-f]+", "", traced[0]) == re.sub("0x[0-9a-f]+", "", traced[1])


def some_go(row, lane):
    """In place of clause 2, where no count is promised."""
    assert sum(mask.sum() for mask in lane.masks[-1]) < sum(mask.size for mask in lane.masks[-1])


def _checks(choose, value, pull, soft=False, **others):
    common = {"masks": check_masks(choose, value), "non-finite": check_non_finite, "branch": check_branch}
    return common | {"inner": check_inner(pull, soft)} | others


def _counts(row, lane, t):
    """What each leaf keeps after step t."""
    share = 1.0 if row.constant else row.share(t)
    return [oracles.kept(weight.size, row.target * share) for weight in lane.weights[0]]


def _str(row, lane, t):
    both = zip(after(lane, t, "weights"), after(lane, t, "extras"), strict=True)
    return [rules.soft_threshold(w, tau) != 0 for w, tau in both]


def _positive(row, lane, t):
    return [m > 0 for m in after(lane, t, "extras")]


def _by_score(row, lane, t):
    return [oracles.top(s, k) for s, k in zip(after(lane, t, "extras"), _counts(row, lane, t), strict=True)]


def _by_size(row, lane, t):
    return [oracles.top(np.abs(s), k) for s, k in zip(after(lane, t, "extras"), _counts(row, lane, t), strict=True)]


def _flips(row, lane, t):
    share = (1 - (t + lane.first) / 20) ** 4
    return [rules.flipped(s, m, share) for s, m in zip(after(lane, t, "extras"), lane.masks[t], strict=True)]


def _spartan(row, lane, t):
    weights = [np.abs(oracles.exact(w)) for w in after(lane, t, "weights")]
    return rules.top_globally(weights, oracles.kept(sum(w.size for w in weights), row.target * row.share(t)))


_on_mask = lambda weight, extra, memory, mask: np.where(mask, weight, 0)
_kept = lambda weight, extra, mask, grad: (np.where(mask, grad, 0), False)
_none = lambda weight, extra, mask, grad: (np.zeros_like(grad), True)


def _spartan_pull(weight, extra, mask, grad):
    """Its gradient is the oracle tests' matter; here the masked leaves' steps are not compared."""
    raise NotImplementedError


def check_dense_leaves(row, lanes):
    """Leaves without a mask move as the bare optimizer moves them, which has no norm over all leaves here."""
    inner = INNERS[row.inner].make()
    for lane in lanes:
        rest = [i for i in range(len(lane.every_weight[0])) if i not in lane.chosen]
        params = [jnp.asarray(lane.every_weight[0][i]) for i in rest]
        grads = [jnp.asarray(jax.tree.leaves(lane.grads_tree)[i]) for i in rest]

        def step(carry, grad):
            params, state = carry
            updates, state = inner.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        _, course = jax.jit(lambda p, g: jax.lax.scan(step, (p, inner.init(p)), g))(params, grads)
        for i, wanted in zip(rest, course, strict=True):
            found = np.stack([lane.every_weight[t + 1][i] for t in range(STEPS)])
            np.testing.assert_allclose(found, wanted, *TOLERANCE["float32"])


def _table():
    always = lambda t: True
    ramp, _ = _ramp(1, 9, 1)
    linear = lambda t: min(t / 5, 1.0)
    f32, bf16 = jnp.float32, jnp.bfloat16
    soft = lambda weight, tau, memory, mask: rules.soft_threshold(weight, tau)
    shrink = lambda weight, tau, mask, grad: (rules.soft_threshold_gradient(weight, tau, grad)[0], False)
    return {
        "str": Row(
            _without_sparsity(sparsejax.str_, threshold_init=-1.5), "adamw", f32, "linen", 0.0, 0.0, _level,
            _always(1.0), always, _fixed, checks=_checks(_str, soft, shrink, True, counts=some_go),
        ),
        "scl": Row(
            _without_sparsity(sparsejax.scl, penalty=0.5, mask_init=0.02), "lion", f32, "tuples", 0.0, 0.0, _level,
            _always(1.0), always, _fixed, checks=_checks(_positive, _on_mask, _kept, counts=some_go),
        ),
        "spartan": Row(
            _of(sparsejax.spartan, total_steps=20, warmup_fraction=0.25), "momentum", f32, "dataclasses", 0.8, 0.6,
            _uniform, linear, always, _fixed, layerwise=False,
            checks=_checks(_spartan, lambda w, e, soft, m: np.where(m, w * soft, 0), _spartan_pull, True,
                           inner=check_dense_leaves),
        ),
        "edge_popup": Row(
            _of(sparsejax.edge_popup), "sgd", bf16, "linen", 0.6, 0.4, _level, _always(1.0), always, _fixed,
            random=True, checks=_checks(_by_size, _on_mask, _none),
        ),
        "jackpots": Row(
            _of(sparsejax.jackpots, total_steps=20), "momentum", f32, "nnx", 0.6, 0.4, _level, _always(1.0), always,
            _fixed, checks=_checks(_flips, _on_mask, _none),
        ),
        "movement": Row(
            _of(sparsejax.movement, update_start=1, update_end=9), "adamw", f32, "equinox", 0.8, 0.6, _uniform, ramp,
            always, _fixed, checks=_checks(_by_score, _on_mask, _kept),
        ),
    }  # fmt: skip


ROWS = _table()
