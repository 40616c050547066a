"""The contract: what every method guarantees, clause by clause, for each row of one table (`contract_cases.ROWS`).

A row costs three compiled programs. One, a scan over all steps, vmapped over lanes that differ in seed, weights,
gradients and step counter, gives the evidence for most clauses; the oracle of clauses 3 and 4 is the second; the third
is one update on eight devices, compared with a lane.
"""

import functools
import itertools
import re

import contract_rows_dense_to_sparse
import contract_rows_reparametrized
import contract_rows_semi_structured
import contract_rows_straight
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from contract_cases import FORMS, INNERS, ROWS, STEPS, arrays
from contract_cells import CELLS, gathered, placements, quickly_compiled, trained
from contract_cells import INNERS as EVERY_INNER
from devices import many_devices
from jax.sharding import AxisType

import sparsejax
from sparsejax.state import Straight

FAMILIES = (
    contract_rows_straight,
    contract_rows_reparametrized,
    contract_rows_semi_structured,
    contract_rows_dense_to_sparse,
)
for family in FAMILIES:
    ROWS = {**ROWS, **family.ROWS}
TOLERANCE = {"float32": (2e-5, 1e-6), "bfloat16": (4e-2, 4e-2), "float16": (4e-3, 4e-3)}


compile_quickly = pytest.fixture(autouse=True)(quickly_compiled)


def make(row, **options):
    return row.make(INNERS[row.inner].make(), row.form, **{"sparsity": row.target, "seed": 3} | options)


def gradients(params, seed):
    """Gradients for each step; of a leaf whose weights are all equal they are all equal too, so its ties never end."""
    draw = np.random.default_rng(seed)

    def some(leaf):
        tied = leaf.ndim > 1 and bool((leaf == leaf.ravel()[0]).all())
        values = draw.normal(size=(STEPS, *((1,) * leaf.ndim if tied else leaf.shape)))
        return jnp.asarray(np.broadcast_to(values, (STEPS, *leaf.shape)), leaf.dtype)

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


class Lane:
    """What a run left, as NumPy arrays by step: `weights[t]`, `masks[t]`, `grads[t]` are lists over the masked leaves.

    Index t of weights and masks is what step t starts from; t = STEPS is the end. `first` is the step counter's start.
    """

    def __init__(self, params, state, grads, after_params, after_state):
        self.params, self.state, self.grads_tree = params, state, grads
        self.after_params, self.after_state = after_params, after_state
        self.first = int(state.count)
        self.chosen = [i for i, mask in enumerate(flat(params, state.masks)) if mask is not None]
        self.every_weight = self._by_step(params, after_params)
        self.every_mask = self._by_step(state.masks, after_state.masks)
        self.weights, self.masks = self._pick(self.every_weight), self._pick(self.every_mask)
        self.grads = self._pick([[g[t] for g in jax.tree.leaves(grads)] for t in range(STEPS)])
        extra = after_state.extra
        column = lambda tree: self._pick(
            list(zip(*([None] * STEPS if x is None else list(x) for x in tree), strict=True))
        )
        # What the rule ranks at step t: the weights that it starts from, or the dense ones that it leaves.
        straight = isinstance(extra, Straight)
        self.ranked = column(flat(params, extra.dense)) if straight else self.weights[:STEPS]
        self.backward = flat(params, extra.backward[0]) if straight and extra.backward else None
        self.backward_first = flat(params, state.extra.backward[0]) if self.backward else None
        self.skipped = [int(state.skipped), *after_state.skipped.tolist()]

    def _by_step(self, first, rest):
        column = lambda a, b: [None] * (STEPS + 1) if a is None else [a, *b]
        columns = [column(a, b) for a, b in zip(flat(self.params, first), flat(self.params, rest), strict=True)]
        return list(zip(*columns, strict=True))

    def _pick(self, steps):
        return [[leaves[i] for i in self.chosen] for leaves in steps]


def lanes_of(row):
    """Runs every lane in one program: two seeds, other weights, a late counter, a bad gradient, a bad weight."""
    due = [t for t in range(STEPS) if row.due(t)]
    plain = FORMS[row.form](arrays(row.dtype))
    other = FORMS[row.form](arrays(row.dtype, seed=7))
    third = jax.tree.map(lambda w: w * jnp.asarray(2.0**-4, w.dtype), FORMS[row.form](arrays(row.dtype, seed=8)))
    init = jax.jit(jax.vmap(lambda params, seed: make(row, seed=seed).init(params)))
    ones, leaves = gradients(plain, 1), jax.tree.leaves(plain)
    bad = next(i for i, leaf in enumerate(leaves) if leaf.ndim > 1 and leaf.size > 32)
    spoilt = jax.tree.leaves(ones)
    spoilt[bad] = spoilt[bad].at[(max(due, default=5), *(0,) * leaves[bad].ndim)].set(jnp.nan)
    leaves[bad] = leaves[bad].at[(0,) * leaves[bad].ndim].set(jnp.inf)
    shape = jax.tree.structure(plain)
    given = {
        "plain": (plain, 3, ones),
        "seed": (plain, 2, ones),
        "other": (other, 3, gradients(other, 2)),
        "third": (third, 3, gradients(third, 3)),
        "late": (plain, 3, ones),
        "gradient": (plain, 3, shape.unflatten(spoilt)),
        "weight": (shape.unflatten(leaves), 3, ones),
    }
    stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    params, seeds, grads = (stack(part) for part in zip(*given.values(), strict=True))
    state = init(params, seeds)
    late = jnp.asarray([int(name == "late" and row.constant) for name in given], jnp.int32)
    state = state._replace(count=state.count + late)
    begin = jax.tree.map(np.array, (params, state, grads))
    _, after = jax.jit(jax.vmap(run(make(row))), donate_argnums=(0, 1))(params, state, grads)
    at = lambda tree, k: jax.tree.map(lambda x: np.asarray(x[k]), tree)
    return {name: Lane(*at(begin, k), *at(after, k)) for k, name in enumerate(given)}


def expected_counts(row, lane, t, sparsity=None):
    """What each leaf keeps (or all together) at the start of step t."""
    sparsity = row.target if sparsity is None else sparsity
    sizes = [weight.size for weight in lane.weights[0]]
    share = 1.0 if row.constant else 0.0 if t == 0 else row.share(t - 1)
    if not row.layerwise and not row.constant:
        return oracles.kept(sum(sizes), sparsity * share)
    shapes = [weight.shape for weight in lane.weights[0]]
    groups = [shape[-1] if row.fan_in else 1 for shape in shapes]
    leaves = zip(sizes, groups, row.begins(shapes, sparsity), strict=True)
    counts = [oracles.kept(size // group, (1 - density) * share) * group for size, group, density in leaves]
    return counts if row.layerwise else sum(counts)


def check_zeros(row, lane):
    """Clause 1: off the mask every weight is exactly 0 after each step."""
    for t in range(1, STEPS + 1):
        if t <= row.lays or (row.behind and row.behind.share(t - 1 + lane.first) > 0):
            continue
        for weight, mask in zip(lane.weights[t], lane.masks[t], strict=True):
            assert (weight[~mask] == 0).all(), f"step {t - 1}: weights off the mask are not 0"
            assert np.isfinite(weight.astype(np.float32)).all()


def check_counts(row, lane):
    """Clause 2: the promised count, at every step; one leaf's weights are all ties."""
    course = [[int(mask.sum()) for mask in masks] for masks in lane.masks]
    if not row.counted:
        assert all(a >= b for before, after in itertools.pairwise(course) for a, b in zip(before, after, strict=True))
        assert course[-1] < course[0] == [mask.size for mask in lane.masks[0]]
        return
    for t, counts in enumerate(course):
        assert (counts if row.layerwise else sum(counts)) == expected_counts(row, lane, t), f"before step {t}"


def check_masks(row, lane):
    """The whole mask by the oracle (of random methods, what is not random); clause 8: no mask moves at other steps."""
    if row.behind and row.due(0) and lane.first == 0:
        chosen = row.rule(0, lane.weights[0], None, lane.masks[0], expected_counts(row, lane, 0))
        for one, mask in zip(chosen, lane.masks[0], strict=True):
            np.testing.assert_array_equal(mask, one, err_msg="at init")
    for t in range(STEPS):
        weights, masks, new, step = lane.ranked[t], lane.masks[t], lane.masks[t + 1], t + lane.first
        if row.due(step) and row.rule is None:
            for must, mask in zip(row.keeps(step, weights, masks), new, strict=True):
                assert mask[must].all(), f"step {step}: a weight that had to survive was dropped"
            assert any((mask & ~old).any() for mask, old in zip(new, masks, strict=True)), f"step {step}: nothing grew"
            continue
        counts = expected_counts(row, lane, t + 1)
        ranked = lane.weights[t + 1] if row.after else weights
        wanted = row.rule(step, ranked, lane.grads[t], masks, counts) if row.due(step) else masks
        for one, mask in zip(wanted, new, strict=True):
            np.testing.assert_array_equal(mask, one, err_msg=f"step {step}")


def by_hand(inner, start, dense_moments, params, masks, grads, hold, anew, given):
    """Clauses 3 and 4 written down: the inner optimizer on masked trees, its moments fresh where the mask changed."""
    lay = lambda tree, masks: [jnp.where(m, x, jnp.zeros_like(x)) for x, m in zip(tree, masks, strict=True)]
    fresh = lambda x, same: jnp.where(same, x, jnp.asarray(start, x.dtype))

    def step(carry, now):
        params, old, state = carry
        masks, grads, hold, anew, given = now
        same = [a & b for a, b in zip(old, masks, strict=True)]
        if not dense_moments:
            state = optax.tree_utils.tree_map_params(inner, fresh, state, same)
            grads = lay(grads, masks)
        updates, state = inner.update(grads, state, lay(params, masks))
        updates = [jnp.where(hold, jnp.zeros_like(u), u) for u in updates]
        params = lay(optax.apply_updates(params, updates), masks)
        params = [jnp.where(anew, a, b) for a, b in zip(given, params, strict=True)]
        return (params, masks, state), (params, state)

    begin = [mask[0] for mask in masks]
    rest = [mask[1:] for mask in masks]
    return jax.lax.scan(step, (params, begin, inner.init(lay(params, begin))), (rest, grads, hold, anew, given))[1]


def by_hand_behind(inner, behind, chosen, params, masks, backward, grads):
    """The same of a straight-through method: the inner optimizer on dense weights, of which masks make the params."""
    lay = lambda tree, masks: [jnp.where(m, x, jnp.zeros_like(x)) for m, x in zip(masks, tree, strict=True)]
    fresh = lambda x, same: jnp.where(same, x, jnp.zeros_like(x))
    every = lambda fn, *lists: [fn(*each) for each in zip(*lists, strict=True)]

    def step(carry, now):
        dense, state = carry
        masks, new, backward, grads, t = now
        if behind.term:
            terms = every(lambda g, v, m, b: behind.term(v, m, b, t).astype(g.dtype), grads, dense, masks, backward)
            grads = [g + term if i in chosen else g for i, (g, term) in enumerate(zip(grads, terms, strict=True))]
        given, moving = dense, None
        if behind.moves:
            moving = every(lambda m, b: behind.moves(m, b, t), masks, backward)
            grads, given = lay(grads, moving), lay(dense, moving)
            state = optax.tree_utils.tree_map_params(inner, fresh, state, moving)
        updates, state = inner.update(grads, state, given)
        updates = lay(updates, moving) if moving else updates
        dense = optax.apply_updates(dense, updates)
        dense = every(lambda v, m: jnp.where(m, v, (behind.shrink(t) * v).astype(v.dtype)), dense, new)
        share = jnp.asarray(behind.share(t), jnp.float32)
        params = every(lambda v, m: jnp.where(m, v, (share * v).astype(v.dtype)), dense, new)
        return (dense, state), (params, state)

    now = ([mask[:-1] for mask in masks], [mask[1:] for mask in masks], backward, grads, jnp.arange(STEPS))
    return jax.lax.scan(step, (params, inner.init(params)), now)[1]


def check_inner(row, lanes):
    """Clauses 3 and 4: dense leaves, kept weights and the inner state move as the same optimizer moves them by hand."""
    steps = range(STEPS)
    inner, hold = INNERS[row.inner], jnp.asarray([row.skips and row.due(t) for t in steps])

    def arguments(lane):
        params = jax.tree.leaves(lane.params)
        laid = lambda i, t, mask: np.ones(params[i].shape, bool) if mask is None or t <= row.lays > 0 else mask
        column = lambda i: [laid(i, t, masks[i]) for t, masks in enumerate(lane.every_mask)]
        masks = [np.stack(column(i)) for i in range(len(params))]
        if row.behind:
            whole = lambda i: [np.ones(params[i].shape, bool)] * STEPS
            given = lambda i: (
                [lane.backward_first[i], *lane.backward[i][:-1]] if lane.backward and i in lane.chosen else whole(i)
            )
            return params, masks, [np.stack(given(i)) for i in range(len(params))], jax.tree.leaves(lane.grads_tree)
        anew = np.asarray([row.adjusts and row.due(t) for t in steps])
        return params, masks, jax.tree.leaves(lane.grads_tree), hold, anew, jax.tree.leaves(lane.after_params)

    both = jax.tree.map(lambda *x: jnp.stack(x), *map(arguments, lanes))
    by = functools.partial(by_hand, inner.make(), inner.start, row.dense_moments)
    if row.behind:
        by = functools.partial(by_hand_behind, inner.make(), row.behind, lanes[0].chosen)
    wanted = jax.jit(jax.vmap(by))(*both)
    relative, absolute = TOLERANCE[np.dtype(row.dtype).name]
    for k, lane in enumerate(lanes):
        found = jax.tree.leaves((lane.after_params, lane.after_state.inner_state))
        for one, mine in zip(jax.tree.leaves(wanted), found, strict=True):
            np.testing.assert_allclose(oracles.exact(mine), oracles.exact(one[k]), relative, absolute)
        for i in range(len(jax.tree.leaves(lane.params))):
            if i not in lane.chosen:
                moved = [(lane.every_weight[t][i] != lane.every_weight[t + 1][i]).any() for t in range(STEPS)]
                assert moved == [not h for h in hold.tolist()], (
                    "a dense leaf moves at each step, but not at a skipped one"
                )


def check_lanes(row, lanes):
    """Clause 5: the seeds differ where the method draws, and there alone; layers and steps draw differently as well."""
    same = all((a == b).all() for a, b in zip(lanes["plain"].masks[-1], lanes["seed"].masks[-1], strict=True))
    assert same is not row.random
    if row.rule is None:
        grown = lambda t, i: lanes["plain"].masks[t + 1][i] & ~lanes["plain"].masks[t][i]
        due = [t for t in range(STEPS) if row.due(t)]
        assert all((grown(a, 0) != grown(b, 0)).any() for a, b in itertools.pairwise(due))


def check_non_finite(row, lanes):
    """Clause 7: one bad entry leaves that leaf's mask for this step, and is counted; the other leaves go on."""
    due = [t for t in range(STEPS) if row.due(t)]
    t, lane, plain = max(due, default=5), lanes["gradient"], lanes["plain"]
    assert (lane.skipped[t], lane.skipped[t + 1]) == (0, int(bool(due)))
    assert not np.isfinite(lane.grads[t][0].astype(np.float32)).all()
    np.testing.assert_array_equal(lane.masks[t + 1][0], lane.masks[t][0])
    for i in range(1, len(lane.chosen)):  # a global ranking has one budget, so all leaves wait
        wanted = plain.masks[t + 1][i] if row.layerwise else lane.masks[t][i]
        np.testing.assert_array_equal(lane.masks[t + 1][i], wanted)
    first, lane = min(due, default=0), lanes["weight"]
    before = lane if row.behind else plain  # what a straight-through method starts from depends on the weights
    np.testing.assert_array_equal(lane.masks[first + 1][0], before.masks[0][0])
    spoilt = sum(not np.isfinite(weight.astype(np.float32)).all() for weight in lane.weights[first])
    assert spoilt >= 1
    assert lane.skipped[first + 1] == (spoilt if due else 0)
    for good in ("plain", "seed", "other", "third", "late"):
        assert lanes[good].skipped[-1] == 0


def equations(jaxpr, inside=False):
    """Every equation, and whether it lies inside a branch of a cond."""
    for equation in jaxpr.eqns:
        yield equation, inside
        for sub in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(sub, inside or equation.primitive.name == "cond")


def check_branch(row, lane):
    """Clause 8: selection only inside a branch whose predicate is one scalar, here under two nested vmaps.

    The program does not depend on the sparsity either: `update` reads every count off the state.
    """
    grads = jax.tree.map(lambda g: g[0], lane.grads_tree)
    args = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, 2, *x.shape)), (grads, lane.state, lane.params))
    traced = [jax.make_jaxpr(jax.vmap(jax.vmap(make(row, sparsity=s).update)))(*args) for s in (row.target, row.other)]
    assert re.sub("0x[0-9a-f]+", "", str(traced[0])) == re.sub("0x[0-9a-f]+", "", str(traced[1]))
    found = list(equations(traced[0].jaxpr))
    conds = [e for e, inside in found if e.primitive.name == "cond" and not inside]
    assert len(conds) == any(row.due(t) for t in range(STEPS))
    assert all(cond.invars[0].aval.shape == () for cond in conds)
    outside = {e.primitive.name for e, inside in found if not inside}
    assert not outside & {"while", "scan", "sort", "top_k", "random_bits", "threefry2x32"}, outside


def check_sharded(row, lane, axis_type):
    """Clause 6: eight devices, no vmap and a state from the host give the lane's masks; no leaf is gathered."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    tx, places = make(row), placements(lane.params, mesh)
    shard = min(weight.size for weight in lane.weights[0]) // 8
    at = lambda tree, t: jax.tree.map(lambda x: x[t], tree)
    due = [t for t in range(1, STEPS) if row.due(t)] or [1]
    with many_devices(), jax.set_mesh(mesh):
        placed = jax.device_put(lane.params, places)
        start = jax.block_until_ready(jax.jit(tx.init)(placed))
        for mask, wanted, place in zip(
            flat(placed, start.masks), lane.every_mask[0], jax.tree.leaves(places), strict=True
        ):
            if mask is not None:
                np.testing.assert_array_equal(mask, wanted)
                assert mask.sharding.is_equivalent_to(place, mask.ndim), f"{mask.sharding} is not {place}"
        update = None
        for t in due[:2]:
            params, grads = jax.device_put((at(lane.after_params, t - 1), at(lane.grads_tree, t)), (places, places))
            state = jax.device_put(at(lane.after_state, t - 1), jax.tree.map(lambda x: x.sharding, start))
            if update is None:
                update = jax.jit(tx.update).lower(grads, state, params).compile()
                assert row.gathers or gathered(update.as_text()) < shard
            _, state = jax.block_until_ready(update(*jax.block_until_ready((grads, state, params))))
            for mask, wanted in zip(flat(placed, state.masks), lane.every_mask[t + 1], strict=True):
                if mask is not None:
                    np.testing.assert_array_equal(mask, wanted, err_msg=f"step {t}")


@pytest.mark.parametrize("name", ROWS)
def test_contract(name):
    row = ROWS[name]
    lanes = lanes_of(row)
    check = {
        "zeros": check_zeros,
        "counts": check_counts,
        "masks": check_masks,
        "inner": check_inner,
        "lanes": check_lanes,
        "non-finite": check_non_finite,
        "branch": check_branch,
    } | row.checks
    for lane in ("plain", "seed", "other", "third", *(["late"] if row.constant else [])):
        check["zeros"](row, lanes[lane])
        check["counts"](row, lanes[lane])
        check["masks"](row, lanes[lane])
    if row.plain:
        check["inner"](row, [lanes["plain"], lanes["other"]])
    check["lanes"](row, lanes)
    check["non-finite"](row, lanes)
    check["branch"](row, lanes["plain"])
    check_sharded(row, lanes["plain"], AxisType.Auto if list(ROWS).index(name) % 2 else AxisType.Explicit)


def fresh_values(cell, params):
    """For each shape, the values that the inner optimizer's init gives to params-shaped leaves of a zero weight."""
    state = EVERY_INNER[cell.inner]().init(jax.tree.map(jnp.zeros_like, params))
    found = {}
    for leaf in jax.tree.leaves(state):
        found.setdefault(jnp.shape(leaf), set()).add(float(jnp.ravel(leaf)[0]) if jnp.size(leaf) else 0.0)
    return found


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell)).replace(" ", "_"))
def test_composition(cell):
    """Clauses 1, 2, 4 and 5 where an inner optimizer, an outer wrapper, a module system, a dtype and devices meet."""
    params, last, first, state, traced = trained(cell)
    assert traced == 1 or cell.devices > 1  # on a mesh, NNX's eager init leaves scalars on one device
    types = lambda tree: [(x.shape, x.dtype, x.aval.weak_type) for x in jax.tree.leaves(tree)]
    assert types(first) == types(state) and jax.tree.structure(first) == jax.tree.structure(state)
    masks = jax.tree.leaves(sparsejax.get_masks(state))
    kernels = [leaf for leaf in jax.tree.leaves(last) if leaf.size > 300]
    assert [mask.shape for mask in masks] == [kernel.shape for kernel in kernels]
    for mask, kernel in zip(masks, kernels, strict=True):
        assert (np.asarray(kernel)[~np.asarray(mask)] == 0).all()
    sizes, counts = [mask.size for mask in masks], [int(mask.sum()) for mask in masks]
    if cell.method != "rigl":
        assert counts == [oracles.kept(size, 0.5) for size in sizes]
    else:
        densities = oracles.erk([mask.shape for mask in masks], 0.5)
        assert counts == [oracles.kept(n, 1 - density) for n, density in zip(sizes, densities, strict=True)]
        before = jax.tree.leaves(sparsejax.get_masks(first))
        assert all((a != b).any() for a, b in zip(before, masks, strict=True))
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(last), strict=True):
        assert np.isfinite(new.astype(jnp.float32)).all()
        assert (old != new).any()
    if cell.method == "sr_ste":  # its inner optimizer sees dense weights
        return
    fresh = fresh_values(cell, params)
    (sparse,) = (
        s for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, sparsejax.SparseState)) if hasattr(s, "masks")
    )
    for leaf in jax.tree.leaves(sparse.inner_state):
        for mask in masks:
            if jnp.shape(leaf) == mask.shape:
                off = np.asarray(leaf, np.float32)[~np.asarray(mask)]
                assert any(np.allclose(off, value) for value in fresh[mask.shape]), (
                    "not what init gives for a zero weight"
                )
