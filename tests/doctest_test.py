"""Every example in a docstring runs, and every public function of the core says what it does."""

import doctest
import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import optax
import pytest

import sparsejax

NAMES = ["sparsejax", *(module.name for module in pkgutil.walk_packages(sparsejax.__path__, "sparsejax."))]
CORE = [
    "masks",
    "packing",
    "selection",
    "patterns",
    "criteria",
    *("distributions.base", "distributions.by_weights", "distributions.erdos_renyi", "distributions.pinned"),
    "schedules",
    "flops",
    "initialization",
    "leaves",
    "state",
    "topology",
]
FACTORIES = [
    *("block", "channel", "except_", "gmp", "nm", "one_shot", "only", "rigl", "set_", "sparse_wrapper", "stacked"),
    *("static", "unstructured", "dsr", "granet", "itop", "mest", "snfs", "srigl"),
    *("ste", "sr_ste", "dnw", "asp", "mdgf", "sdgf", "top_kast", "iss_p", "straight_through"),
    *("edge_popup", "jackpots", "movement", "reparametrized", "scl", "spartan", "str_"),
    *("adam_s", "ast", "ast_adam", "bdwp", "cast"),
    *("acdc", "acdc_phases", "obert", "pq_index", "sap", "sap_masks"),
]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    given = {"jax": jax, "jnp": jnp, "optax": optax, "sparsejax": sparsejax}
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with jax.numpy_rank_promotion("allow"):
        for test in doctest.DocTestFinder().find(module, name, extraglobs=given):
            report = []
            runner.run(test, out=report.append)
            assert not runner.failures, "".join(report)


def public(module):
    """The functions and classes that a module defines, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    }


@pytest.mark.parametrize(
    "name", [*(f"sparsejax.{part}" for part in CORE), *(n for n in NAMES if ".transforms" in n or ".saliency" in n)]
)
def test_everything_public_says_what_it_does(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for item, value in public(module).items():
        first = (inspect.getdoc(value) or "").partition("\n\n")[0]
        assert first.endswith((".", ":")), f"{name}.{item}: {first!r}"
        assert "\n" not in first, f"{name}.{item}: the first sentence takes one line"


@pytest.mark.parametrize("name", FACTORIES)
def test_exported_factories_show_an_example(name):
    assert "\nExample" in inspect.getdoc(getattr(sparsejax, name))


def test_all_is_complete_and_sorted():
    assert sorted(sparsejax.__all__, key=str) == list(sparsejax.__all__)
    assert {name for name in sparsejax.__all__ if not hasattr(sparsejax, name)} == set()
