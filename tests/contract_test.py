"""The contract: what every method guarantees, clause by clause, for each row of one table (`contract_cases.ROWS`).

A row costs a few compiled programs: one scan over all steps gives the evidence for most clauses, and is run again on
other states and other gradients.
"""

import functools
import re

import flax.serialization
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from contract_cases import FORMS, INNERS, LAYOUTS, ROWS, STEPS, arrays
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import sparsejax

TOLERANCE = {"float32": (2e-5, 1e-6), "bfloat16": (4e-2, 4e-2), "float16": (4e-3, 4e-3)}


def copied(tree):
    return jax.tree.map(jnp.array, tree)


def make(row, **options):
    return row.make(INNERS[row.inner].make(), row.form, **{"sparsity": row.target, "seed": 3} | options)


def gradients(params, seed, steps=STEPS):
    """Gradients for each step; of a leaf whose weights are all equal they are all equal too, so its ties never end."""
    draw = np.random.default_rng(seed)

    def some(leaf):
        tied = leaf.size > 1 and bool(jnp.all(leaf == leaf.ravel()[0])) and leaf.ndim > 1
        return jnp.asarray(np.broadcast_to(draw.normal(size=(steps, *((1,) * leaf.ndim if tied else leaf.shape))), (steps, *leaf.shape)), leaf.dtype)

    return jax.tree.map(some, params)


def run(tx):
    """params, state, gradients -> the last params and state, and both after every step."""

    def program(params, state, grads):
        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state)

        return jax.lax.scan(step, (params, state), grads)

    return program


def flat(params, tree):
    """The leaves of a tree that has the params' structure, or None at some leaves."""
    return jax.tree.structure(params).flatten_up_to(tree)


def masked_only(params, masks):
    """Which leaves have a mask."""
    return [i for i, mask in enumerate(flat(params, masks)) if mask is not None]


class Evidence:
    """What a run left, as NumPy arrays by step: `weights[t][i]`, `masks[t][i]` after step t - 1; t = 0 is the start."""

    def __init__(self, params, state, grads, after):
        self.params, self.state, self.grads = params, state, grads
        self.after_params, self.after_state = after
        self.chosen = masked_only(params, state.masks)
        self.dense = [i for i in range(len(jax.tree.leaves(params))) if i not in self.chosen]
        self.weights = self._by_step(params, self.after_params)
        self.masks = self._by_step(state.masks, self.after_state.masks)
        self.grad = [[np.asarray(g[t]) for g in jax.tree.leaves(grads)] for t in range(STEPS)]

    def _by_step(self, first, rest):
        first, rest = flat(self.params, first), flat(self.params, rest)
        column = lambda a, b: [None] * (STEPS + 1) if a is None else [np.asarray(a), *np.asarray(b)]
        return list(zip(*(column(a, b) for a, b in zip(first, rest, strict=True)), strict=True))

    def pick(self, rows, t):
        return [rows[t][i] for i in self.chosen]


def observed(program, params, state, grads):
    params, state = jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, state)
    _, after = program(copied(params), copied(state), grads)
    return Evidence(params, state, grads, after)


def expected_counts(row, seen, sparsity, t):
    """What each leaf keeps (or all together) after step t - 1; t = 0 is the start."""
    sizes = [seen.weights[0][i].size for i in seen.chosen]
    share = 1.0 if row.begins.__name__ == "_erk" else 0.0 if t == 0 else row.share(t - 1)
    if not row.layerwise:
        return oracles.kept(sum(sizes), sparsity * share)
    densities = row.begins([seen.weights[0][i].shape for i in seen.chosen], sparsity)
    return [oracles.kept(size, (1 - density) * share) for size, density in zip(sizes, densities, strict=True)]


def check_zeros(seen):
    """Clause 1: off the mask every weight is exactly 0 after each step."""
    for t in range(1, STEPS + 1):
        for weight, mask in zip(seen.pick(seen.weights, t), seen.pick(seen.masks, t), strict=True):
            assert (weight[~mask] == 0).all(), f"step {t - 1}: weights off the mask are not 0"
            assert np.isfinite(weight.astype(np.float32)).all()


def check_counts(row, seen, sparsity):
    """Clause 2: the promised count, at every step."""
    for t in range(STEPS + 1):
        counts = [int(mask.sum()) for mask in seen.pick(seen.masks, t)]
        counts = counts if row.layerwise else sum(counts)
        assert counts == expected_counts(row, seen, sparsity, t), f"step {t - 1}"


def check_masks(row, seen, sparsity):
    """The whole mask by the oracle, element by element; of random methods the part that is not random. Clause 8: no others move."""
    for t in range(STEPS):
        weights, grads, masks, new = (
            seen.pick(seen.weights, t), seen.pick(seen.grad, t), seen.pick(seen.masks, t), seen.pick(seen.masks, t + 1),
        )  # fmt: skip
        if not row.due(t):
            wanted = masks
        elif row.rule is not None:
            wanted = row.rule(t, weights, grads, masks, expected_counts(row, seen, sparsity, t + 1))
        else:
            for must, mask in zip(row.keeps(t, weights, masks), new, strict=True):
                assert mask[must].all(), f"step {t}: a weight that had to survive was dropped"
            continue
        for one, other in zip(wanted, new, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=f"step {t}")


def by_hand(inner, start, params, masks, grads, hold):
    """Clauses 3 and 4 written down: the inner optimizer on masked trees, its moments fresh where the mask changed."""
    lay = lambda tree, mask: jax.tree.map(lambda x, m: jnp.where(m, x, jnp.zeros_like(x)), tree, mask)
    first = jax.tree.map(lambda m: m[0], masks)
    state = inner.init(lay(params, first))

    def step(carry, xs):
        params, old, state = carry
        mask, grad, hold = xs
        same = jax.tree.map(jnp.logical_and, old, mask)
        state = optax.tree_utils.tree_map_params(inner, lambda x, s: jnp.where(s, x, jnp.asarray(start, x.dtype)), state, same)
        updates, state = inner.update(lay(grad, mask), state, lay(params, mask))
        updates = jax.tree.map(lambda u: jnp.where(hold, jnp.zeros_like(u), u), updates)
        params = lay(optax.apply_updates(params, updates), mask)
        return (params, mask, state), (params, state)

    return jax.lax.scan(step, (params, first, state), (jax.tree.map(lambda m: m[1:], masks), grads, hold))[1]


def check_inner(row, seen):
    """Clauses 3 and 4: dense leaves, kept weights and the inner state move as the same optimizer moves them by hand."""
    params = jax.tree.leaves(copied(seen.params))
    masks = [np.stack(m) if m[0] is not None else np.ones((STEPS + 1, *p.shape), bool) for m, p in zip(zip(*seen.masks, strict=True), params, strict=True)]
    hold = jnp.asarray([row.skips and row.due(t) for t in range(STEPS)])
    inner = INNERS[row.inner]
    wanted = jax.jit(functools.partial(by_hand, inner.make(), inner.start))(params, masks, jax.tree.leaves(seen.grads), hold)
    found = (jax.tree.leaves(seen.after_params), seen.after_state.inner_state)
    relative, absolute = TOLERANCE[np.dtype(row.dtype).name]
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(oracles.exact(other), oracles.exact(one), relative, absolute)
    fixed = [t for t in range(STEPS) if hold[t]]
    for i in seen.dense:
        assert all((seen.weights[t][i] == seen.weights[t + 1][i]).all() for t in fixed), "a skipped step moved a dense leaf"
        assert any((seen.weights[t][i] != seen.weights[t + 1][i]).any() for t in range(STEPS))


def check_non_finite(row, program, params, state, seen):
    """Clause 7: one bad gradient entry leaves that leaf's mask for this step, and is counted; the others go on."""
    due = [t for t in range(STEPS) if row.due(t)]
    t = due[-1] if due else 5
    bad = seen.chosen[0]
    leaves, structure = jax.tree.flatten(seen.grads)
    leaves[bad] = leaves[bad].at[(t, *(0,) * (leaves[bad].ndim - 1))].set(jnp.nan)
    again = observed(program, params, state, structure.unflatten(leaves))
    np.testing.assert_array_equal(again.masks[t + 1][bad], again.masks[t][bad])
    assert again.after_state.skipped[t - 1] == 0 if t else True
    assert again.after_state.skipped[t] == bool(due)
    for i in seen.chosen[1:]:
        wanted = again.masks[t][i] if due and not row.layerwise else seen.masks[t + 1][i]
        np.testing.assert_array_equal(again.masks[t + 1][i], wanted)
    leaves = jax.tree.leaves(params)
    leaves[bad] = jnp.asarray(leaves[bad]).at[(0,) * leaves[bad].ndim].set(jnp.inf)
    again = observed(program, jax.tree.unflatten(structure, leaves), state, seen.grads)
    first = min(due, default=0)
    np.testing.assert_array_equal(again.masks[first + 1][bad], seen.masks[0][bad])
    assert again.after_state.skipped[first] == bool(due)


def equations(jaxpr, inside=False):
    """Every equation, and whether it lies inside a branch of a cond."""
    for equation in jaxpr.eqns:
        yield equation, inside
        for sub in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(sub, inside or equation.primitive.name == "cond")


def check_branch(row, tx, params, state, grads):
    """Clause 8: selection only inside a branch whose predicate is one scalar, also under vmap and nested vmap."""
    axes = 0
    update = tx.update
    args = (jax.tree.map(lambda g: g[0], grads), state, params)
    for _ in range(3):
        found = list(equations(jax.make_jaxpr(update)(*args).jaxpr))
        conds = [e for e, inside in found if e.primitive.name == "cond" and not inside]
        assert len(conds) == any(row.due(t) for t in range(STEPS))
        assert all(cond.invars[0].aval.shape == () for cond in conds)
        outside = {e.primitive.name for e, inside in found if not inside}
        assert not outside & {"while", "scan", "sort", "top_k", "random_bits", "threefry2x32"}, outside
        update = jax.vmap(update, axes)
        args = jax.tree.map(lambda x: jnp.stack([x, x]), args)


def sharded(params, mesh):
    """The params on a mesh: kernels over both axes where these divide them."""

    def place(leaf):
        names = [None] * leaf.ndim
        for name in ("x", "y"):
            fits = [a for a in range(leaf.ndim) if names[a] is None and leaf.shape[a] % mesh.shape[name] == 0]
            if fits and leaf.ndim > 1:
                names[max(fits, key=lambda a: leaf.shape[a])] = name
        return NamedSharding(mesh, PartitionSpec(*names))

    return jax.tree.map(place, params)


def gathered(text):
    """How many elements the largest result of an all-gather or all-to-all has in a compiled program."""
    shapes = re.findall(r"= \(?\w+\[([\d,]*)\][^=]*? (?:all-gather|all-to-all)(?:-start)?\(", text)
    return max([int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes], default=0)


def check_sharded(row, tx, seen, axis_type, lanes=0):
    """Clause 6: the same masks on eight devices, with nothing of a leaf's size gathered."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    at = lambda tree, t: jax.tree.map(lambda x: jnp.asarray(x[t]), tree)
    due = [t for t in range(1, STEPS) if row.due(t)] or [1]
    params_like = sharded(seen.params, mesh)
    shard = min(seen.weights[0][i].size for i in seen.chosen) // 8
    with jax.set_mesh(mesh):
        init = jax.jit(tx.init)
        placed = jax.device_put(copied(seen.params), params_like)
        start = init(placed)
        for i, mask in enumerate(flat(seen.params, start.masks)):
            if mask is not None:
                np.testing.assert_array_equal(mask, seen.masks[0][i])
                wanted = jax.tree.leaves(placed)[i].sharding
                assert mask.sharding.is_equivalent_to(wanted, mask.ndim), f"{mask.sharding} is not {wanted}"
        update = None
        for t in due[:2]:
            params, state, grads = at(seen.after_params, t - 1), at(seen.after_state, t - 1), at(seen.grads, t)
            like = jax.tree.map(lambda x: x.sharding, start)
            params, grads, state = (jax.device_put(x, s) for x, s in ((params, params_like), (grads, params_like), (state, like)))
            if update is None:
                update = jax.jit(tx.update).lower(grads, state, params).compile()
                assert gathered(update.as_text()) < shard
            _, state = update(grads, state, params)
            for i, mask in enumerate(flat(seen.params, state.masks)):
                if mask is not None:
                    np.testing.assert_array_equal(mask, seen.masks[t + 1][i], err_msg=f"step {t}")


def check_lanes(row, params, seen, program):
    """Clause 5 and 6: vmap over seeds gives each lane what its seed gives alone; random methods differ between lanes."""
    seeds = jnp.arange(2, 4)
    start = jax.vmap(lambda seed: make(row, seed=seed).init(params))(seeds)
    tx = make(row)
    lanes = jax.jit(jax.vmap(run(tx), in_axes=(None, 0, None)))
    (_, last), _ = lanes(params, start, seen.grads)
    alone = observed(program, params, make(row, seed=2).init(params), seen.grads)
    for lane, single in ((0, alone), (1, seen)):
        for i in seen.chosen:
            np.testing.assert_array_equal(flat(params, start.masks)[i][lane], single.masks[0][i])
            np.testing.assert_array_equal(flat(params, last.masks)[i][lane], single.masks[-1][i])
    return alone


@pytest.mark.parametrize("name", ROWS)
def test_contract(name):
    row = ROWS[name]
    tx = make(row)
    params = FORMS[row.form](arrays(row.dtype))
    state = tx.init(params)
    grads = gradients(params, 1)
    program = jax.jit(run(tx), donate_argnums=(0, 1))
    seen = observed(program, params, state, grads)
    check_zeros(seen)
    check_counts(row, seen, row.target)
    check_masks(row, seen, row.target)
    check_inner(row, seen)
    check_non_finite(row, program, params, state, seen)
    check_branch(row, tx, params, state, grads)
    check_lanes(row, params, seen, program)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        check_sharded(row, tx, seen, axis_type)
