"""The contract: what every method guarantees, clause by clause, for each row of one table (`contract_cases.ROWS`).

A row costs three compiled programs. One, a scan over all steps, vmapped over lanes that differ in seed, weights, gradients
and step counter, gives the evidence for most clauses; the oracle of clauses 3 and 4 is the second; the third is one
update on eight devices, compared with a lane.
"""

import functools
import re

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from contract_cases import FORMS, INNERS, ROWS, STEPS, arrays
from contract_cells import CELLS, placements, trained, wrapped
from contract_cells import INNERS as EVERY_INNER
from jax.sharding import AxisType

import sparsejax

TOLERANCE = {"float32": (2e-5, 1e-6), "bfloat16": (4e-2, 4e-2), "float16": (4e-3, 4e-3)}


@pytest.fixture(autouse=True)
def _compile_quickly():
    """Programs here run once, on small arrays: half of the time would go into optimizing them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


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
        self.skipped = [int(state.skipped), *after_state.skipped.tolist()]

    def _by_step(self, first, rest):
        column = lambda a, b: [None] * (STEPS + 1) if a is None else [a, *b]
        columns = [column(a, b) for a, b in zip(flat(self.params, first), flat(self.params, rest), strict=True)]
        return list(zip(*columns, strict=True))

    def _pick(self, steps):
        return [[leaves[i] for i in self.chosen] for leaves in steps]


def lanes_of(row):
    """Runs every lane in one program: two seeds, other weights, a late counter, bad gradients, a bad weight; other sparsity."""
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
    if not row.layerwise:
        return oracles.kept(sum(sizes), sparsity * share)
    densities = row.begins([weight.shape for weight in lane.weights[0]], sparsity)
    return [oracles.kept(size, (1 - density) * share) for size, density in zip(sizes, densities, strict=True)]


def check_zeros(lane):
    """Clause 1: off the mask every weight is exactly 0 after each step."""
    for t in range(1, STEPS + 1):
        for weight, mask in zip(lane.weights[t], lane.masks[t], strict=True):
            assert (weight[~mask] == 0).all(), f"step {t - 1}: weights off the mask are not 0"
            assert np.isfinite(weight.astype(np.float32)).all()


def check_counts(row, lane):
    """Clause 2: the promised count, at every step; one leaf's weights are all ties."""
    for t in range(STEPS + 1):
        counts = [int(mask.sum()) for mask in lane.masks[t]]
        assert (counts if row.layerwise else sum(counts)) == expected_counts(row, lane, t), f"before step {t}"


def check_masks(row, lane):
    """The whole mask by the oracle (of random methods, what is not random); clause 8: no mask moves at other steps."""
    for t in range(STEPS):
        weights, masks, new, step = lane.weights[t], lane.masks[t], lane.masks[t + 1], t + lane.first
        if row.due(step) and row.rule is None:
            for must, mask in zip(row.keeps(step, weights, masks), new, strict=True):
                assert mask[must].all(), f"step {step}: a weight that had to survive was dropped"
            assert any((mask & ~old).any() for mask, old in zip(new, masks, strict=True)), f"step {step}: nothing grew"
            continue
        counts = expected_counts(row, lane, t + 1)
        wanted = row.rule(step, weights, lane.grads[t], masks, counts) if row.due(step) else masks
        for one, mask in zip(wanted, new, strict=True):
            np.testing.assert_array_equal(mask, one, err_msg=f"step {step}")


def by_hand(inner, start, params, masks, grads, hold):
    """Clauses 3 and 4 written down: the inner optimizer on masked trees, its moments fresh where the mask changed."""
    lay = lambda tree, masks: [jnp.where(m, x, jnp.zeros_like(x)) for x, m in zip(tree, masks, strict=True)]
    fresh = lambda x, same: jnp.where(same, x, jnp.asarray(start, x.dtype))

    def step(carry, now):
        params, old, state = carry
        masks, grads, hold = now
        same = [a & b for a, b in zip(old, masks, strict=True)]
        state = optax.tree_utils.tree_map_params(inner, fresh, state, same)
        updates, state = inner.update(lay(grads, masks), state, lay(params, masks))
        updates = [jnp.where(hold, jnp.zeros_like(u), u) for u in updates]
        params = lay(optax.apply_updates(params, updates), masks)
        return (params, masks, state), (params, state)

    begin = [mask[0] for mask in masks]
    rest = [mask[1:] for mask in masks]
    return jax.lax.scan(step, (params, begin, inner.init(lay(params, begin))), (rest, grads, hold))[1]


def check_inner(row, lanes):
    """Clauses 3 and 4: dense leaves, kept weights and the inner state move as the same optimizer moves them by hand."""
    inner, hold = INNERS[row.inner], jnp.asarray([row.skips and row.due(t) for t in range(STEPS)])

    def arguments(lane):
        params = jax.tree.leaves(lane.params)
        column = lambda i: [np.ones(params[i].shape, bool) if m[i] is None else m[i] for m in lane.every_mask]
        return params, [np.stack(column(i)) for i in range(len(params))], jax.tree.leaves(lane.grads_tree), hold

    both = jax.tree.map(lambda *x: jnp.stack(x), *map(arguments, lanes))
    wanted = jax.jit(jax.vmap(functools.partial(by_hand, inner.make(), inner.start)))(*both)
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
        assert all((grown(a, 0) != grown(b, 0)).any() for a, b in zip(due, due[1:], strict=False))


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
    np.testing.assert_array_equal(lane.masks[first + 1][0], plain.masks[0][0])
    assert lane.skipped[first + 1] == bool(due)
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


def gathered(text):
    """How many elements the largest result of an all-gather or all-to-all has in a compiled program."""
    shapes = re.findall(r"\w+\[([\d,]*)\][^=\n]* (?:all-gather|all-to-all)(?:-start)?\(", text)
    return max([int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes], default=0)


def check_sharded(row, lane, axis_type):
    """Clause 6: eight devices and no vmap give the lane's masks, from a state that went through the host; no leaf is gathered."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    tx, places = make(row), placements(lane.params, mesh)
    shard = min(weight.size for weight in lane.weights[0]) // 8
    at = lambda tree, t: jax.tree.map(lambda x: x[t], tree)
    due = [t for t in range(1, STEPS) if row.due(t)] or [1]
    with jax.set_mesh(mesh):
        placed = jax.device_put(lane.params, places)
        start = jax.jit(tx.init)(placed)
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
                assert gathered(update.as_text()) < shard
            _, state = update(grads, state, params)
            for mask, wanted in zip(flat(placed, state.masks), lane.every_mask[t + 1], strict=True):
                if mask is not None:
                    np.testing.assert_array_equal(mask, wanted, err_msg=f"step {t}")


@pytest.mark.parametrize("name", ROWS)
def test_contract(name):
    row = ROWS[name]
    lanes = lanes_of(row)
    for lane in ("plain", "seed", "other", "third", *(["late"] if row.constant else [])):
        check_zeros(lanes[lane])
        check_counts(row, lanes[lane])
        check_masks(row, lanes[lane])
    check_inner(row, [lanes["plain"], lanes["other"]])
    check_lanes(row, lanes)
    check_non_finite(row, lanes)
    check_branch(row, lanes["plain"])
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
    kernels = [leaf for leaf in jax.tree.leaves(last) if leaf.size > 200]
    assert [mask.shape for mask in masks] == [kernel.shape for kernel in kernels]
    for mask, kernel in zip(masks, kernels, strict=True):
        assert (np.asarray(kernel)[~np.asarray(mask)] == 0).all()
    sizes, counts = [mask.size for mask in masks], [int(mask.sum()) for mask in masks]
    if cell.method in ("one_shot", "gmp"):
        assert counts == [oracles.kept(size, 0.5) for size in sizes]
    else:
        densities = oracles.erk([mask.shape for mask in masks], 0.5)
        assert counts == [oracles.kept(n, 1 - density) for n, density in zip(sizes, densities, strict=True)]
        before = jax.tree.leaves(sparsejax.get_masks(first))
        assert all((a != b).any() for a, b in zip(before, masks, strict=True))
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(last), strict=True):
        assert np.isfinite(new.astype(jnp.float32)).all()
        assert (old != new).any()
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


SMALL = {
    "Dense_0": {"kernel": np.linspace(-1, 1, 96, dtype=np.float32).reshape(12, 8), "bias": np.zeros(8, np.float32)}
}
SGD = optax.sgd(0.1, momentum=0.9)
EVERY_METHOD = (sparsejax.static, sparsejax.one_shot, sparsejax.gmp, sparsejax.set_, sparsejax.rigl)


def small(seed=0):
    """A new copy of a small tree."""
    return jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(seed).permutation(x.ravel()).reshape(x.shape)), SMALL
    )


def updated(tx, params, grads, step, start=None):
    """The masks before and after the update at one step, and the new params, of one leaf."""
    state = (jax.jit(tx.init)(params) if start is None else start)._replace(count=jnp.int32(step))
    updates, after = jax.jit(tx.update)(grads, state, params)
    pick = lambda tree: np.asarray(jax.tree.leaves(tree)[-1])
    return pick(state.masks), pick(after.masks), pick(optax.apply_updates(params, updates))


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_init_under_transformations(method):
    """init alone, under jit, vmap and eval_shape gives one structure; a tree without leaves is fine; tree_map_params goes through."""
    tx = method(optax.adam(0.1), sparsity=0.5)
    params = small()
    shapes = jax.eval_shape(tx.init, params)
    eager, jitted = tx.init(params), jax.jit(tx.init)(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(lambda x: (x.shape, x.dtype), eager)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted), strict=True))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, eager))]
    assert len(set(pointers)) == len(pointers)
    mapped = optax.tree_utils.tree_map_params(tx, lambda x: x + 1, eager)
    assert (mapped.inner_state[0].mu["Dense_0"]["kernel"] == 1).all()
    np.testing.assert_array_equal(mapped.inner_state[0].count, eager.inner_state[0].count)
    for empty in ({}, (), {"a": None}):
        state = tx.init(empty)
        assert tx.update(empty, state, empty)[0] == empty
        assert sparsejax.get_masks(state) == empty


def test_given_masks_can_be_donated():
    masks = {"Dense_0": {"kernel": jnp.arange(96).reshape(12, 8) % 2 == 0, "bias": None}}
    wanted, params = np.asarray(masks["Dense_0"]["kernel"]), small()
    tx = sparsejax.static(SGD, masks=masks)
    state = tx.init(params)
    given = sparsejax.set_masks(state, masks)
    jax.jit(lambda m: jax.tree.map(jnp.logical_not, m), donate_argnums=0)(masks)
    for kept in (state, given):
        np.testing.assert_array_equal(sparsejax.get_masks(kept)["Dense_0"]["kernel"], wanted)


@pytest.mark.parametrize(
    "method", [sparsejax.one_shot, sparsejax.gmp, sparsejax.set_, sparsejax.rigl, sparsejax.static]
)
def test_random_ties(method):
    """Clause 2: ties broken at random keep the count, differ between seeds, and never touch a weight that is not tied."""
    options = {"update_end": 4} if method is sparsejax.gmp else {"at_step": 4} if method is sparsejax.one_shot else {}
    options |= {"update_every": 4} if method not in (sparsejax.static, sparsejax.one_shot) else {}
    params = {"kernel": jnp.full((12, 8), 0.5).at[0].set(2.0)}
    grads = jax.tree.map(jnp.ones_like, params)
    found = []
    for seed in (0, 1):
        tx = method(SGD, sparsity=0.75, ties="random", seed=seed, **options)
        before, after, _ = updated(tx, params, grads, 4)
        assert after.sum() == 24
        assert after[0].all() or method not in (sparsejax.one_shot, sparsejax.gmp)
        found.append(after)
    assert (found[0] != found[1]).any()


def test_scores_that_are_hard_to_order():
    """Clause 2: NaN scores are last, subnormal weights keep their order, -0 is 0."""
    values = np.arange(1, 17, dtype=np.float32) * np.float32(1e-45)
    params = {"kernel": jnp.asarray(np.stack([np.zeros(16, np.float32), -values, np.full(16, -0.0, np.float32)]))}
    tx = sparsejax.one_shot(SGD, sparsity=0.75)
    _, after, _ = updated(tx, params, params, 0)
    np.testing.assert_array_equal(after, oracles.top(np.abs(np.asarray(params["kernel"], np.float64)), 12))
    assert after[1, 4:].all() and after.sum() == 12
    score = lambda leaf: jnp.where(leaf.weight > 0, jnp.nan, leaf.weight)
    plan = (sparsejax.schedules.gradual(2, 2),)
    tx = sparsejax.sparse_wrapper(SGD, lambda leaf: sparsejax.keep_best(leaf, score), plan=plan, sparsity=0.25)
    params = {"kernel": jnp.asarray(np.linspace(-1, 1, 96, dtype=np.float32).reshape(12, 8))}
    _, after, _ = updated(tx, params, params, 2)
    np.testing.assert_array_equal(after, np.arange(96).reshape(12, 8) < 72)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_stacked_leaves_are_ranked_slice_by_slice(method):
    """Layers of very different scales in one leaf: each keeps its own count, and its own largest weights."""
    scales = jnp.asarray([1.0, 1e-3, 1e3])[:, None, None]
    draw = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 12, 8)), jnp.float32)
    params, grads = {"layers": {"kernel": draw[0] * scales}}, {"layers": {"kernel": draw[1] * scales}}
    options = {"update_end": 4} if method is sparsejax.gmp else {"at_step": 4} if method is sparsejax.one_shot else {}
    options |= {"update_every": 4} if method not in (sparsejax.static, sparsejax.one_shot) else {}
    tx = method(SGD, sparsity=0.75, layout=sparsejax.stacked("layers/*"), **options)
    before, after, _ = updated(tx, params, grads, 4)
    assert after.sum((1, 2)).tolist() == [24, 24, 24]
    weights, grad = np.asarray(params["layers"]["kernel"]), np.asarray(grads["layers"]["kernel"])
    for i in range(3):
        if method is sparsejax.rigl:
            np.testing.assert_array_equal(after[i], oracles.rigl(weights[i], grad[i], before[i], 0.3))
        elif method is sparsejax.set_:
            assert (
                after[i][oracles.signed_survivors(weights[i], before[i], 0.3)].all() and (after[i] != before[i]).any()
            )
        elif method is not sparsejax.static:
            np.testing.assert_array_equal(after[i], oracles.top(np.abs(weights[i]), 24))
    assert (before[0] != before[1]).any() or method in (sparsejax.one_shot, sparsejax.gmp)


@pytest.mark.parametrize("method", [sparsejax.set_, sparsejax.rigl])
def test_n_of_m_moves_weights_inside_their_group(method):
    params, grads = small(1), small(2)
    tx = method(SGD, pattern=sparsejax.nm(2, 4), update_every=4)
    before, after, _ = updated(tx, params, grads, 4)
    for mask in (before, after):
        assert (mask.reshape(3, 4, 8).sum(1) == 2).all()
    assert (before & ~after).sum() > 0
    weights = np.asarray(params["Dense_0"]["kernel"])
    left = (oracles.survivors if method is sparsejax.rigl else oracles.signed_survivors)(weights, before, 0.3)
    assert after[left].all()
    if method is sparsejax.rigl:  # of each group's free places those of the largest gradient
        grad = np.abs(np.asarray(grads["Dense_0"]["kernel"]))
        score = np.where(left, np.inf, grad).reshape(3, 4, 8)
        wanted = np.stack([oracles.top(score[i, :, j], 2) for i in range(3) for j in range(8)])
        np.testing.assert_array_equal(after.reshape(3, 4, 8), wanted.reshape(3, 8, 4).swapaxes(1, 2))


def test_n_of_m_gradually():
    """GMP keeps 4, 3 and 2 of every 4 one after the other, always the largest of the group."""
    params = small(1)
    tx = sparsejax.gmp(SGD, pattern=sparsejax.nm(1, 4), update_end=8, update_every=1)
    state, weights, seen = jax.jit(tx.init)(params), np.abs(np.asarray(params["Dense_0"]["kernel"])), []
    update = jax.jit(tx.update)
    for _ in range(9):
        _, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        mask = np.asarray(state.masks["Dense_0"]["kernel"]).reshape(3, 4, 8)
        counts = set(mask.sum(1).ravel().tolist())
        assert len(counts) == 1
        seen.append(counts.pop())
        for i, j in np.ndindex(3, 8):
            np.testing.assert_array_equal(mask[i, :, j], oracles.top(weights.reshape(3, 4, 8)[i, :, j], seen[-1]))
    shares = [oracles.cubic(1.0, 0.0, 0, 8, t) for t in range(9)]
    assert seen == [oracles.kept(4, 0.75 * share) for share in shares]
    assert seen[-1] == 1 and sorted(set(seen), reverse=True) == [4, 3, 2, 1]


@pytest.mark.parametrize("pattern", [sparsejax.block((4, 4)), sparsejax.block((5, 3)), sparsejax.channel()])
def test_structured_patterns(pattern):
    """Whole blocks and channels move, and their number stays."""
    params, grads = small(1), small(2)
    tx = sparsejax.rigl(SGD, sparsity=0.5, pattern=pattern, update_every=4, drop_fraction=0.5)
    before, after, weights = updated(tx, params, grads, 4)
    rows, columns = (12, 1) if pattern == sparsejax.channel() else pattern.shape
    blocks = lambda mask: [
        mask[i : i + rows, j : j + columns] for i in range(0, 12, rows) for j in range(0, 8, columns)
    ]
    assert all(block.all() or not block.any() for mask in (before, after) for block in blocks(mask))
    units = [sum(bool(block.any()) for block in blocks(mask)) for mask in (before, after)]
    assert units == [oracles.kept(len(blocks(before)), 0.5)] * 2
    assert (before != after).any() and (weights[~after] == 0).all()


def test_lanes_keep_their_own_calendar():
    """Clause 8 under vmap: where counters differ, a lane moves at its own update steps alone, and as it would by itself."""
    params, grads = small(1), small(2)
    tx = sparsejax.rigl(SGD, sparsity=0.5, update_every=2, skip_step=False)
    state = jax.jit(tx.init)(params)
    states = jax.tree.map(lambda x: jnp.stack([x, x]), state)._replace(count=jnp.asarray([2, 3]))
    _, after = jax.jit(jax.vmap(tx.update, in_axes=(None, 0, None)))(grads, states, params)
    _, alone, _ = updated(tx, params, grads, 2)
    found = np.asarray(after.masks["Dense_0"]["kernel"])
    np.testing.assert_array_equal(found[0], alone)
    np.testing.assert_array_equal(found[1], state.masks["Dense_0"]["kernel"])


def test_unfactored_and_factored_moments():
    """Clause 4: adafactor's factored moments are left alone where masks change, its momentum is fresh there."""
    inner = optax.adafactor(0.01, min_dim_size_to_factor=8, momentum=0.9)
    params, grads = small(1), small(2)
    tx = sparsejax.rigl(inner, sparsity=0.5, update_every=1, skip_step=True)
    state = jax.jit(tx.init)(params)
    fill = lambda x: jnp.full_like(x, 7) if x.ndim else x
    state = state._replace(inner_state=jax.tree.map(fill, state.inner_state), count=jnp.int32(1))
    seen = []

    def spy(updates, inner_state, params=None):
        seen.append(inner_state)
        return inner.update(updates, inner_state, params)

    spied = sparsejax.rigl(optax.GradientTransformation(inner.init, spy), sparsity=0.5, update_every=1)
    _, after = spied.update(grads, state, params)
    stay = np.asarray(after.masks["Dense_0"]["kernel"] & state.masks["Dense_0"]["kernel"])
    for leaf in jax.tree.leaves(seen[0]):
        if leaf.shape == stay.shape:
            np.testing.assert_array_equal(leaf, np.where(stay, 7, 0))
        elif leaf.ndim:
            assert (leaf == 7).all()
    assert {leaf.shape for leaf in jax.tree.leaves(seen[0])} > {(12,), (8,), (12, 8)}


IMPOSSIBLE = {
    "sparsity 1": (lambda: sparsejax.rigl(SGD, sparsity=1.0), "sparsity=1.0"),
    "sparsity below 0": (lambda: sparsejax.static(SGD, sparsity=-0.1), "sparsity=-0.1"),
    "sparsity NaN": (lambda: sparsejax.gmp(SGD, sparsity=float("nan")), "sparsity=nan"),
    "sparsity missing": (lambda: sparsejax.set_(SGD), "sparsity"),
    "sparsity a word": (lambda: sparsejax.one_shot(SGD, sparsity="high"), "sparsity='high'"),
    "neither": (lambda: sparsejax.static(SGD), "sparsity"),
    "both": (lambda: sparsejax.static(SGD, sparsity=0.5, masks={}), "masks"),
    "n above m": (lambda: sparsejax.nm(5, 4), "nm"),
    "n zero": (lambda: sparsejax.nm(0, 4), "nm"),
    "disagrees with n:m": (lambda: sparsejax.rigl(SGD, sparsity=0.9, pattern=sparsejax.nm(2, 4)), "0.9.*0.5"),
    "distribution with n:m": (
        lambda: sparsejax.rigl(SGD, pattern=sparsejax.nm(2, 4), distribution=sparsejax.distributions.erk), "distribution",
    ),
    "m does not divide": (lambda: sparsejax.rigl(SGD, pattern=sparsejax.nm(2, 5)).init(small()), "Dense_0/kernel.*12.*5"),
    "axis of n:m": (lambda: sparsejax.rigl(SGD, pattern=sparsejax.nm(2, 4, axis=2)).init(small()), "axis 2"),
    "density": (
        lambda: sparsejax.rigl(SGD, sparsity=0.5, distribution=lambda *_: {"Dense_0": {"kernel": 1.5, "bias": None}}).init(small()),
        "Dense_0/kernel.*1.5",
    ),
    "no leaf": (lambda: sparsejax.rigl(SGD, sparsity=0.5, where=lambda path, leaf: False).init(small()), "where.*Dense_0/kernel"),
    "glob": (lambda: sparsejax.rigl(SGD, sparsity=0.5, where=sparsejax.except_("Dens_0/*")).init(small()), "Dens_0.*Dense_0"),
    "pattern glob": (
        lambda: sparsejax.rigl(SGD, sparsity=0.5, pattern={"Conv*": sparsejax.nm(2, 4)}).init(small()), "Conv.*Dense_0",
    ),
    "layout": (
        lambda: sparsejax.rigl(SGD, sparsity=0.5, layout=lambda path, leaf: ((), (0,), (0,))).init(small()), "layout.*Dense_0/kernel",
    ),
    "masks' shape": (
        lambda: sparsejax.static(SGD, masks={"Dense_0": {"kernel": jnp.ones((8, 12), bool), "bias": None}}).init(small()),
        r"Dense_0/kernel.*\(12, 8\).*\(8, 12\)",
    ),
    "masks' dtype": (
        lambda: sparsejax.static(SGD, masks={"Dense_0": {"kernel": jnp.ones((12, 8)), "bias": None}}).init(small()),
        "Dense_0/kernel.*bool.*float32",
    ),
    "masks' tree": (lambda: sparsejax.static(SGD, masks={"Dense_1": None}).init(small()), "masks"),
    "ties": (lambda: sparsejax.rigl(SGD, sparsity=0.5, ties="first"), "ties='first'.*random"),
    "drop fraction": (lambda: sparsejax.rigl(SGD, sparsity=0.5, drop_fraction=1.5), "drop_fraction=1.5"),
    "every": (lambda: sparsejax.set_(SGD, sparsity=0.5, update_every=0), "update_every=0"),
    "every in gmp": (lambda: sparsejax.gmp(SGD, sparsity=0.5, update_every=0), "update_every=0"),
    "end before start": (lambda: sparsejax.gmp(SGD, sparsity=0.5, update_start=9, update_end=5), "update_end=5"),
    "initial above target": (lambda: sparsejax.gmp(SGD, sparsity=0.5, initial_sparsity=0.6), "initial_sparsity=0.6"),
    "at_step": (lambda: sparsejax.one_shot(SGD, sparsity=0.5, at_step=-1), "at_step=-1"),
    "rounding": (lambda: sparsejax.rigl(SGD, sparsity=0.5, drop_rounding="up"), "drop_rounding='up'"),
    "distribution's name": (lambda: sparsejax.gmp(SGD, sparsity=0.5, distribution="erk"), "distribution='erk'"),
    "global in RigL": (lambda: sparsejax.rigl(SGD, sparsity=0.5, distribution="global"), "global"),
    "global with a pattern": (lambda: sparsejax.gmp(SGD, distribution="global", pattern=sparsejax.nm(2, 4)), "distribution"),
    "block": (lambda: sparsejax.block((0, 4)), "block"),
    "two ramps": (
        lambda: sparsejax.sparse_wrapper(SGD, sparsejax.keep_best, plan=(sparsejax.schedules.gradual(5, 1),) * 2, sparsity=0.5),
        "gradual",
    ),
    "no rule": (lambda: sparsejax.sparse_wrapper(SGD, plan=(sparsejax.schedules.rewire(5, 0.3),), sparsity=0.5), "new_mask"),
    "no params": (lambda: _without_params(sparsejax.rigl(SGD, sparsity=0.5)), "params"),
    "given masks and a ramp": (
        lambda: _update(
            sparsejax.sparse_wrapper(
                SGD, sparsejax.keep_best, plan=(sparsejax.schedules.gradual(5, 1),),
                masks={"Dense_0": {"kernel": jnp.ones((12, 8), bool), "bias": None}},
            )
        ),
        "sparsity|masks",
    ),
}  # fmt: skip


def _without_params(tx):
    params = small()
    tx.update(params, tx.init(params))


def _update(tx):
    params = small()
    tx.update(params, tx.init(params), params)


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_requests(name):
    """One ValueError, at construction or init, with the leaf or argument, the value and what is allowed."""
    build, message = IMPOSSIBLE[name]
    with pytest.raises(ValueError, match=message):
        build()
