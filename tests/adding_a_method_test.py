"""The page on adding a method: its blocks run, and its toy method passes the contract like any other."""

import inspect
import re
from pathlib import Path

import contract_test
import jax
import pytest
from contract_cells import quickly_compiled

import sparsejax
from sparsejax.training import ConfigError, methods, resolve

PAGE = Path(__file__).parent.parent / "docs" / "adding_a_method.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.fixture(scope="module")
def names():
    """All that the page defines; the blocks share one namespace, from the top to the bottom."""
    before = dict(methods.METHODS)
    found = {}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
            with jax.numpy_rank_promotion("allow"):
                for i, block in enumerate(BLOCKS):
                    exec(compile(block, f"{PAGE.name}, block {i + 1}", "exec"), found)
            yield found
    finally:
        methods.METHODS.clear()
        methods.METHODS.update(before)


def test_the_pages_method_is_a_method_in_configs(names):
    assert methods.METHODS["fade"] is names["fade"] and names["result"]["sparsity"] == 0.9
    assert methods.update_grid({"method": "fade", "method_args": {}}) == (0, 100)
    with pytest.raises(ConfigError, match=r"method_args.*update_evry.*update_every"):
        resolve({"method": "fade", "method_args": {"update_evry": 5}})


def test_the_pages_method_keeps_the_contract(names, monkeypatch):
    monkeypatch.setitem(contract_test.ROWS, "fade", names["row"])
    switch = quickly_compiled()
    next(switch)
    contract_test.test_contract("fade")
    next(switch, None)


def test_the_forms_that_the_page_names_exist():
    text = PAGE.read_text()
    wrapper = inspect.signature(sparsejax.sparse_wrapper).parameters
    for name in ("memory", "adjusts", "many_gradients", "new_masks"):
        assert name in wrapper and f"`{name}" in text
    for name in ("Leaf", "Adjusted", "drop_and_grow", "keep_best"):
        assert hasattr(sparsejax, name) and name in text
