"""JaxPruner's algorithms as cases, from a folder with its source: the peer that ours are measured against."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax

from cases import END, EVERY, SPARSITY, Case

COMMAND = "--peer JAXPRUNER"  # what the results say instead of the path
_ROWS = [  # name, JaxPruner's name, family, when masks change, whether they are drawn at init
    ("static", "static_sparse", "static", "never", True),
    ("gmp", "magnitude", "prune", "grid", False),
    ("gmp_global", "global_magnitude", "prune", "grid", False),
    ("set", "set", "rewire", "grid", True),
    ("rigl", "rigl", "rewire", "grid", True),
]


def peer_cases(folder: Path) -> tuple[list[Case], list[str]]:
    """The cases, and a line for each thing that was patched, in this process only, so that they run on today's jax.

    Raises:
      ValueError: there is no JaxPruner in the folder, or it cannot be imported.
    """
    if not (folder / "jaxpruner" / "__init__.py").is_file():
        raise ValueError(f"--peer {folder}: holds no jaxpruner/__init__.py; the root of a JaxPruner checkout is needed")
    patches = _patch()
    sys.path.insert(0, str(folder))
    try:
        import jaxpruner
    except ImportError as error:
        raise ValueError(f"--peer {folder}: {error}") from None
    finally:
        sys.path.remove(str(folder))
    return [_case(jaxpruner, *row) for row in _ROWS], patches


def _patch() -> list[str]:
    """Gives jax back the `tree_map` that JaxPruner was written for: one that leaves out None in the first tree."""
    if hasattr(jax, "tree_map"):
        return []

    def tree_map(function, tree, *rest, is_leaf=None):
        ends = lambda node: node is None or (is_leaf is not None and is_leaf(node))
        return jax.tree.map(lambda x, *more: None if x is None else function(x, *more), tree, *rest, is_leaf=ends)

    jax.tree_map = tree_map
    return ["jax.tree_map: put back, with None in its first tree standing for no leaf, as before jax 0.6"]


def _case(jaxpruner: Any, name: str, theirs: str, family: str, changes: str, random: bool) -> Case:
    import ml_collections

    config = ml_collections.ConfigDict({"algorithm": theirs, "dist_type": "erk" if random else "uniform"})
    config.sparsity = SPARSITY
    if changes == "grid":
        config.update({"update_freq": EVERY, "update_start_step": 0, "update_end_step": END})
    if family == "rewire":
        config.drop_fraction = 0.3
    updater = jaxpruner.create_updater_from_config(config)
    return Case(
        f"jaxpruner {name}",
        family,
        lambda inner, layout: updater.wrap_optax(inner),
        changes,
        random,
        library="jaxpruner",
        finish=updater.post_gradient_update,
    )
