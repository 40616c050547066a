"""The parameter trees that are measured: the shapes of real networks, random values."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sparsejax import flax_layout
from sparsejax.leaves import Layout, select_leaves

Shapes = dict[str, tuple[int, ...]]


class Tree(NamedTuple):
    """One tree.

    Attributes:
      name: on the command line and in the tables.
      shapes: path -> shape; the paths are chosen so that the default predicate takes the leaves that are to be pruned.
      dtype: of the params, so of AdamW's moments too.
      layout: which axes are inputs; None is Flax's.
      large: left out unless asked for.
      compile_only: too many leaves to say anything by running it.
      only: the cases measured on it, by name; None: all.
    """

    name: str
    shapes: Shapes
    dtype: str = "float32"
    layout: Layout | None = None
    large: bool = False
    compile_only: bool = False
    only: tuple[str, ...] | None = None

    def avals(self) -> Any:
        """The params as shapes and dtypes."""
        return _nested({path: jax.ShapeDtypeStruct(shape, self.dtype) for path, shape in self.shapes.items()})

    def values(self, seed: int = 0) -> Any:
        """Normal values of a usual initial scale, all different from one another but for rounding."""
        keys = jax.random.split(jax.random.key(seed), len(self.shapes))
        flat = {}
        for key, (path, shape) in zip(keys, self.shapes.items(), strict=True):
            flat[path] = jnp.asarray(0.02, self.dtype) * jax.random.normal(key, shape, self.dtype)
        return _nested(flat)

    def facts(self) -> dict[str, Any]:
        """What the tables say about the tree."""
        prunable = [math.prod(leaf.shape) for leaf in jax.tree.leaves(select_leaves(self.avals()))]
        return {
            "name": self.name,
            "dtype": self.dtype,
            "weights": sum(map(math.prod, self.shapes.values())),
            "leaves": len(self.shapes),
            "prunable_weights": sum(prunable),
            "prunable_leaves": len(prunable),
            "largest_leaf_bytes": max(prunable) * jnp.dtype(self.dtype).itemsize,
        }


def _nested(flat: dict[str, Any]) -> Any:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def resnet50() -> Shapes:
    """He et al. 2016: 53 convolutions with their batch norms, and the classifier; 161 leaves, 54 of them prunable."""
    shapes: Shapes = {}

    def conv(name: str, *shape: int) -> None:
        shapes[f"{name}/kernel"] = shape
        shapes[f"{name}_bn/scale"] = shapes[f"{name}_bn/bias"] = shape[-1:]

    conv("stem", 7, 7, 3, 64)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            name = f"stage{stage}_block{block}"
            conv(f"{name}/conv0", 1, 1, inputs, width)
            conv(f"{name}/conv1", 3, 3, width, width)
            conv(f"{name}/conv2", 1, 1, width, 4 * width)
            if block == 0:
                conv(f"{name}/shortcut", 1, 1, inputs, 4 * width)
            inputs = 4 * width
    return shapes | {"head/kernel": (inputs, 1000), "head/bias": (1000,)}


def gpt(layers: int, width: int, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """GPT-2: twelve leaves a block, four of them prunable; both embeddings and the last norm.

    The embeddings are called weight, not embedding, so that the default predicate takes them: JaxPruner's default does,
    and GPT-2 small then has the 50 prunable leaves of 148 that the targets speak of.
    """
    shapes: Shapes = {"wte/weight": (vocabulary, width), "wpe/weight": (context, width)}

    def norm(name: str) -> None:
        shapes[f"{name}/scale"] = shapes[f"{name}/bias"] = (width,)

    def dense(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}/kernel"], shapes[f"{name}/bias"] = (inputs, outputs), (outputs,)

    for block in range(layers):
        norm(f"block{block}/ln_1")
        dense(f"block{block}/attn_qkv", width, 3 * width)
        dense(f"block{block}/attn_out", width, width)
        norm(f"block{block}/ln_2")
        dense(f"block{block}/mlp_in", width, 4 * width)
        dense(f"block{block}/mlp_out", 4 * width, width)
    norm("ln_f")
    return shapes


def tied_head(path: str, array: Any):
    """The token table is also the output layer, so its reduction axis is the width, which N:M can divide."""
    return ((), (1,), (0,)) if path == "wte/weight" else flax_layout(path, array)


GROWTH = ("static", "gmp", "rigl")  # what growth with size is shown by

TREES = {
    tree.name: tree
    for tree in (
        Tree("gpt-1m", gpt(4, 128, 2048, 256), layout=tied_head, only=GROWTH),
        Tree("resnet50", resnet50()),
        Tree("gpt2", gpt(12, 768), layout=tied_head),
        Tree("leaves-1000", {f"layer{i:03}/kernel": (100, 100) for i in range(1000)}, compile_only=True, large=True),
        Tree("gpt-1b", gpt(18, 2048), dtype="bfloat16", layout=tied_head, large=True, only=GROWTH),
    )
}
