"""One case on one tree: made, compiled, and run step by step with donated params and state."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cases import Case, fingerprint
from trees import Tree

LEARNING_RATE = 1e-3


@contextlib.contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Nothing is read from or written to jax's persistent cache in the block, so that compile times are real."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


class Material:
    """The gradients that all cases of a tree share, other ones in every round, and fresh params for each case."""

    def __init__(self, tree: Tree):
        self.grads = tree.values()
        avals = {leaf.shape: leaf for leaf in jax.tree.leaves(tree.avals())}
        roll = jax.jit(lambda x: jnp.roll(x, 1))
        self._rolls = {shape: roll.lower(leaf).compile() for shape, leaf in avals.items()}

    def params(self) -> Any:
        """For each weight the gradient of the one before it: as random, and no second tree need be kept."""
        return jax.tree.map(self._roll, self.grads)

    def refresh(self) -> None:
        """Moves every gradient to the next weight, so that a method that grows by gradient finds other places."""
        leaves, structure = jax.tree.flatten(self.grads)
        del self.grads  # leaf by leaf, so that two trees are never held
        for place, leaf in enumerate(leaves):
            leaves[place] = self._roll(leaf)
        self.grads = structure.unflatten(leaves)

    def _roll(self, x: jax.Array) -> jax.Array:
        return self._rolls[x.shape](x)


class Compiled:
    """The compiled step of a case.

    Attributes:
      init: the transformation's.
      run: `(params, state, grads) -> (params, state)`, compiled; the first two are donated.
      seconds: of tracing and compiling.
      temp_bytes: what the compiled step needs besides its arguments and results.
    """

    def __init__(self, case: Case, tree: Tree):
        tx = case.make(optax.adamw(LEARNING_RATE), tree.layout)
        params = tree.avals()
        state = jax.eval_shape(lambda params: _strong(tx.init(params)), params)
        jax.clear_caches()  # what another case has traced or compiled must not make this one faster

        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params if case.finish is None else case.finish(params, state)), state

        start = time.perf_counter()
        self.run = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
        self.seconds = time.perf_counter() - start
        self.init = tx.init
        self.temp_bytes = int(self.run.memory_analysis().temp_size_in_bytes)


class Program:
    """A case at work.

    Attributes:
      case: it.
      compiled: its step.
      init_seconds: of the first `tx.init`, which compiles, and of the second.
      mask_bytes: of the masks in the state; masked_weights: how many weights they are for.
      updates: mask updates run so far.
      dispatch: seconds until the last call of `ordinary` returned, per step; near its time, the host was the limit.
    """

    def __init__(self, case: Case, tree: Tree, material: Material):
        self.case = case
        self.compiled = Compiled(case, tree)
        self._material = material
        self._params = material.params()
        jax.clear_caches()
        self.init_seconds = [self._init(), self._init()]
        masks = getattr(self._state, "masks", None)
        self.mask_bytes = sum(mask.nbytes for mask in jax.tree.leaves(masks))
        self.masked_weights = _masked_weights(self._params, masks)
        self._fingerprint = fingerprint.lower(masks).compile()
        self.updates = 0
        self.dispatch = 0.0

    def _init(self) -> float:
        """Seconds of one eager init."""
        self._state = None
        start = time.perf_counter()
        self._state = jax.block_until_ready(self.compiled.init(self._params))
        seconds = time.perf_counter() - start
        self._state = _strong(self._state)
        return seconds

    def warm_up(self) -> None:
        """One step of each kind; the masks are sparse afterwards."""
        if self.case.changes == "grid":
            self.update()
        elif self.case.changes == "always":
            before = self._fingerprint(self._state.masks)
            self._steps(None, 2)  # no mask changes at step 0
            self._check_changed(before)
        self._steps(None, 1)

    def ordinary(self, steps: int) -> float:
        """Seconds per step without mask update (for a case that always updates: with one), after an untimed one."""
        self._steps(None, 1)
        seconds = self._steps(None, steps) / steps
        self.dispatch = self._dispatched / steps
        return seconds

    def one_by_one(self, steps: int) -> float:
        """The same, waiting for each step, as `update` does."""
        self._steps(None, 1)
        return sum(self._steps(None, 1) for _ in range(steps)) / steps

    def update(self) -> float:
        """Seconds of one step that changes masks, after an untimed ordinary one; RuntimeError where no mask changed."""
        self._steps(None, 1)
        before = self._fingerprint(self._state.masks)
        seconds = self._steps(self.updates, 1)
        self._check_changed(before)
        self.updates += 1
        return seconds

    def _check_changed(self, before: jax.Array) -> None:
        if int(self._fingerprint(self._state.masks)) == int(before):
            raise RuntimeError(f"{self.case.name}: no mask changed at update {self.updates}, so it was not measured")

    def _steps(self, update: int | None, steps: int) -> float:
        params, state = jax.block_until_ready((self._params, self.case.at(self._state, update)))
        start = time.perf_counter()
        for _ in range(steps):
            params, state = self.compiled.run(params, state, self._material.grads)
        self._dispatched = time.perf_counter() - start
        self._params, self._state = jax.block_until_ready((params, state))
        return time.perf_counter() - start


def _strong(state: Any) -> Any:
    """The state with an array of its dtype for each Python number, which a compiled step would refuse later on."""
    return jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x)) if _is_number(x) else x, state)


def _is_number(x: Any) -> bool:
    return isinstance(x, (bool, int, float))


def _masked_weights(params: Any, masks: Any) -> int:
    """How many weights have a mask."""
    if masks is None:
        return 0
    taken = jax.tree.structure(params).flatten_up_to(masks)
    return sum(x.size for x, mask in zip(jax.tree.leaves(params), taken, strict=True) if mask is not None)
