"""Every python block of the README runs by itself, as a reader would paste it."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import sparsejax

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.sub(r"\W+", " ", block)[:60])
def test_block_runs(block):
    exec(compile(block, "README.md", "exec"), {})


def test_the_plain_loop_keeps_the_promised_count():
    names = {}
    exec(compile(BLOCKS[0], "README.md", "exec"), names)
    kernel = names["params"]["kernel"]
    assert int(jnp.count_nonzero(kernel)) <= 64 * 32 - int(0.9 * 64 * 32 + 1e-6)
    masks = sparsejax.get_masks(names["opt_state"])
    assert not bool(jnp.any(kernel[~masks["kernel"]]))
    assert int(masks["kernel"].sum()) == 64 * 32 - int(0.9 * 64 * 32 + 1e-6)


def test_the_custom_method_is_about_twelve_lines():
    block = next(block for block in BLOCKS if "prune_then_explore" in block)
    assert len([line for line in block.splitlines() if line.strip()]) <= 14
