"""The core needs jax, optax and chex alone, and imports point left."""

import ast
import pathlib
import subprocess
import sys
import textwrap

import pytest

import sparsejax

ROOT = pathlib.Path(sparsejax.__file__).parent
BLOCKED = [
    *("flax", "ml_collections", "orbax", "equinox", "sklearn", "matplotlib", "rich", "absl"),
    *("grain", "PIL", "tokenizers", "safetensors"),
]
FORBIDDEN = {*BLOCKED, "numpy.random", "random", "tensorflow", "torch", "pickle"}

# Each part of the core with the parts of sparsejax that it may import.
CORE = {
    "state": set(),
    "leaves": set(),
    "batching": set(),
    "selection": {"batching"},
    "packing": set(),
    "masks": {"leaves", "packing", "state"},
    "schedules": set(),
    "patterns": {"leaves", "selection"},
    "bidirectional": {"leaves", "patterns"},
    "criteria": {"leaves", "selection"},
    "distributions": {"leaves"},
    "jaxpr_walk": {"leaves"},
    "fisher": {"leaves", "packing"},
    "flops": {"leaves", "masks", "jaxpr_walk"},
    "initialization": {"leaves", "masks"},
    "topology": {"jaxpr_walk", "leaves", "masks", "state"},
    "transforms": {
        *(
            "state",
            "leaves",
            "batching",
            "selection",
            "packing",
            "masks",
            "schedules",
            "patterns",
            "criteria",
            "distributions",
            "fisher",
            "flops",
            "topology",
        )
    },
    "saliency": {"distributions", "leaves", "masks", "patterns", "selection", "topology", "transforms"},
}
OUTER = ["files", "kernels", "formats", "models", "data", "training", "cli", "launch", "report"]


def sources(part):
    """The files of a part: one module, or every module of a package."""
    package = ROOT / part
    return sorted(package.rglob("*.py")) if package.is_dir() else [ROOT / f"{part}.py"]


def imports(path):
    """Every module that a file imports at run time, dotted, with the names taken from it."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def parts_of(modules):
    """The parts of sparsejax among imported names."""
    return {module.split(".")[1] for module in modules if module.startswith("sparsejax.")}


def test_every_module_has_its_place():
    modules = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert modules - {"__init__"} <= {*CORE, *OUTER}


@pytest.mark.parametrize("part", CORE)
def test_imports_of_the_core_point_left(part):
    for path in sources(part):
        modules = imports(path)
        assert parts_of(modules) <= CORE[part] | {part}, path
        for module in modules:
            prefixes = {".".join(module.split(".")[:length]) for length in range(1, module.count(".") + 2)}
            assert not prefixes & FORBIDDEN, (path, module)


@pytest.mark.parametrize("part", CORE)
def test_the_core_draws_no_numbers_from_numpy(part):
    for path in sources(part):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "random":
                assert ast.unparse(node.value) in ("jax", "criteria"), (path, node.lineno)


def test_outer_parts_import_neither_the_command_line_nor_each_other_backwards():
    order = {"kernels": 0, "formats": 1, "models": 2, "data": 2, "training": 3, "report": 4, "launch": 4, "cli": 5}
    for part in OUTER:
        for path in sources(part) if (ROOT / part).is_dir() or (ROOT / f"{part}.py").exists() else []:
            later = {other for other in parts_of(imports(path)) if order.get(other, 0) > order[part]}
            assert not later, path


SCRIPT = """
    import builtins, sys

    import jax, jax.numpy as jnp, optax, chex

    BLOCKED = {blocked}

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in BLOCKED:
                raise ImportError(f"{{name}} is blocked")

    loaded = [name for name in sys.modules if name.split(".")[0] in BLOCKED]
    assert all(name.split(".")[0] == "absl" for name in loaded), loaded  # optax and chex need absl themselves
    sys.meta_path.insert(0, Blocker())
    real = builtins.__import__

    def guarded(name, globals=None, *rest):
        if (globals or {{}}).get("__name__", "").startswith("sparsejax"):
            assert name.split(".")[0] not in BLOCKED, name
        return real(name, globals, *rest)

    builtins.__import__ = guarded

    import sparsejax

    params = {{"kernel": jnp.ones((8, 8)), "bias": jnp.zeros(8)}}
    tx = sparsejax.rigl(optax.adam(0.1), sparsity=0.75, update_every=2)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        loss = lambda params: jnp.sum((params["kernel"].sum(0) + params["bias"] - jnp.arange(8.0)) ** 2)
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    masks = sparsejax.get_masks(state)
    assert sparsejax.density(masks) == 0.25, sparsejax.density(masks)
    assert bool((jnp.where(masks["kernel"], 0, params["kernel"]) == 0).all())
    assert not bool((params["kernel"] == 1).any())
    assert "sparsejax.training" not in sys.modules
    print("trained", int(state.count))
"""


def test_the_core_trains_where_everything_else_is_missing():
    script = textwrap.dedent(SCRIPT).format(blocked=set(BLOCKED))
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT.parent, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["trained", "3"]
