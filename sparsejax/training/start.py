"""Where a run begins, if not at its config's initial weights: at given params, under given masks, at a step.

A rewound lottery ticket, a member of a soup and dense fine-tuning after sparse pre-training are ordinary runs but for
this. It is not in their config; `start.json` beside it has the checksum, so that no directory goes on from elsewhere.
"""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sparsejax.leaves import named_leaves
from sparsejax.state import SparseState
from sparsejax.training.errors import ConfigError


class Start(NamedTuple):
    """Where a run begins; what is None is as in any run of its config.

    Attributes:
      params: each leaf (S, *shape) for S seeds; taken as they are, but for zeros off the masks.
      model_state: the other collections (`batch_stats`), in the same way.
      masks: the params' tree of bool arrays (S, *shape), or None where a leaf has none; for a method that keeps masks,
        such as `static`, in place of those that it would choose.
      step: steps that count as done: the learning rate and the order of the data go on from there. The optimizer is
        fresh: its moments are zero, its bias correction begins anew.
    """

    params: Any = None
    model_state: Any = None
    masks: Any = None
    step: int = 0


def at_step(opt_state: Any, step: int) -> Any:
    """A fresh optimizer state whose schedules, of rates and of masks, are at `step`.

    Example:
      >>> tx = optax.adam(optax.linear_schedule(1.0, 0.0, 10))
      >>> state = at_step(tx.init(jnp.ones(3)), 4)
      >>> int(state[1].count), int(state[0].count)
      (4, 0)
    """

    def one(node):
        if isinstance(node, SparseState):
            inner = at_step(node.inner_state, step)
            return node._replace(count=jnp.full_like(node.count, step), inner_state=inner)
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=jnp.full_like(node.count, step))
        return node

    return jax.tree.map(one, opt_state, is_leaf=lambda node: isinstance(node, SparseState | optax.ScaleByScheduleState))


def check_start(start: Start, variables: tuple[Any, Any], steps: int, until: int | None, method: str) -> None:
    """Raises ConfigError where a run of `steps` steps, with variables of these shapes, cannot begin at `start`."""
    last = steps if until is None else until
    if not 0 <= last <= steps:
        raise ConfigError(f"until: {until} is not in 0..{steps}, the steps of the run")
    if not 0 <= start.step <= last:
        raise ConfigError(f"start: step {start.step} is not in 0..{last}, the steps of the run")
    if start.masks is not None and method == "dense":
        raise ConfigError("start: masks were given, but method 'dense' has none; use 'static'")
    for name, given, wanted in zip(("params", "model_state"), start[:2], variables, strict=True):
        if given is not None:
            _check_shapes(name, given, wanted)


def _check_shapes(name: str, given: Any, wanted: Any) -> None:
    found = {path: tuple(leaf.shape) for path, leaf in named_leaves(given)}
    asked = {path: tuple(leaf.shape) for path, leaf in named_leaves(wanted)}
    for path in sorted(found.keys() | asked.keys()):
        if found.get(path) != asked.get(path):
            has, needs = (list(shapes[path]) if path in shapes else "missing" for shapes in (found, asked))
            raise ConfigError(f"start: {name} {path} is {has}, of the model it is {needs} (seeds first)")


def describe(start: Start | None, until: int | None) -> dict[str, Any]:
    """What start.json holds: {} for a run that begins and ends as its config says."""
    if start is None and until is None:
        return {}
    start = start or Start()
    checksum = hashlib.sha256()
    for name, tree in zip(start._fields[:3], start[:3], strict=True):
        checksum.update(f"{name}:{tree is None};".encode())
        for path, leaf in named_leaves(tree):
            array = np.asarray(leaf)
            checksum.update(f"{path}:{array.dtype}{array.shape};".encode())
            checksum.update(np.ascontiguousarray(array).tobytes())
    return {"step": start.step, "until": until, "sha256": checksum.hexdigest()}
