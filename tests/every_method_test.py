"""Each name that a config's `method` may have trains a small net to its end, which is as sparse as was asked."""

import jax
import numpy as np
import pytest

from sparsejax.masks import get_masks
from sparsejax.training import resolve, train
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.methods import METHODS
from sparsejax.training.trial import prepare

STEPS = 8  # 4 of an epoch, two epochs
WIDTHS = (64, 16, 16, 10)
UNTIL = {"update_every": 2, "update_end": 6}
N_OF_M = {"pattern": "nm(2, 4)"}
# method -> its sparsity (None: it finds its own) and its method_args
CASES = {
    "dense": (None, {}),
    "static": (0.75, {}),
    "one_shot": (0.75, {"at_step": 2}),
    "gmp": (0.75, UNTIL),
    "set": (0.75, UNTIL),
    "rigl": (0.75, UNTIL),
    "itop": (0.75, UNTIL),
    "snfs": (0.75, UNTIL),
    "dsr": (0.75, {"update_every": 2}),
    "mest": (0.75, UNTIL),
    "srigl": (0.75, UNTIL),
    "granet": (0.75, UNTIL | {"rewire_end": 7}),
    "ste": (0.5, {}),
    "sr_ste": (0.5, N_OF_M),
    "dnw": (0.75, {}),
    "asp": (0.5, {"at_step": 2, "multiples": (1, 1), "where": "except_('Dense_2/*')"}),
    "mdgf": (0.5, {"schedule": "exponential", "update_start": 1, "update_end": 5} | N_OF_M),
    "sdgf": (0.75, {"pattern": "nm(1, 4)", "update_end": 6}),
    "top_kast": (0.75, {"backward_sparsity": 0.5}),
    "iss_p": (0.75, {"update_end": 6}),
    "str": (None, {"threshold_init": -3.0}),
    "spartan": (0.75, {"total_steps": STEPS}),
    "scl": (None, {}),
    "movement": (0.75, UNTIL),
    "edge_popup": (0.75, {}),
    "jackpots": (0.75, {"total_steps": STEPS}),
    "acdc": (0.75, {"update_start": 2, "update_every": 1, "update_end": 6}),
    "sap": (None, {"update_every": 2}),
    "obert": (0.75, UNTIL | {"gradients": 8, "block_size": 8}),
    "ast": (0.5, N_OF_M),
    "cast": (0.5, {"update_every": 2, "update_end": 6}),
    "bdwp": (0.5, N_OF_M | {"update_end": 6}),
    "magnitude_at_init": (0.75, {}),
    "snip": (0.75, {}),
    "grasp": (0.75, {}),
    "synflow": (0.75, {"iterations": 5}),
}  # fmt: skip


def config(method):
    sparsity, arguments = CASES[method]
    asked = {} if sparsity is None else {"sparsity": sparsity}
    if "pattern" in arguments or method in ("ste", "cast"):
        arguments = arguments | {"where": "except_('Dense_2/*')"}  # 10 outputs
    rest = {"model_args": {"features": WIDTHS[1:-1]}, "seeds": 1, "epochs": 2, "batch_size": 359, "chunk_steps": 4}
    return asked | rest | {"method": method, "method_args": arguments, "checkpoint_every_epochs": 2}


def test_every_method_has_a_case():
    assert CASES.keys() == METHODS.keys()


ELSEWHERE = {
    "dense",
    "static",
    "one_shot",
    "gmp",
    "set",
    "rigl",
    "snip",
}  # training_test trains these, and looks closer


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.long if name in ELSEWHERE else ()) for name in CASES]
)
def test_a_method_trains_by_config(method, tmp_path):
    sparsity, _ = CASES[method]
    result = train(config(method), tmp_path / "run")
    assert result["steps"] == STEPS and np.isfinite(result["loss"]).all()
    if method == "dense":
        return
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    _, state = checkpoints.restore(prepare(resolve(config(method))).like)
    checkpoints.close()
    masks = get_masks(state.opt_state)
    kernels = {layer: np.asarray(params["kernel"][0]) for layer, params in state.params.items()}
    kept = {layer: np.asarray(masks[layer]["kernel"][0]) for layer in kernels if masks[layer]["kernel"] is not None}
    assert len(kept) in (2, 3)
    for layer, mask in kept.items():
        assert (kernels[layer][~mask] == 0).all() and np.isfinite(kernels[layer]).all()
    density = sum(mask.sum() for mask in kept.values()) / sum(mask.size for mask in kept.values())
    rounding = sum(WIDTHS[1:]) if method == "srigl" else 3  # weights: up in each neuron, or in each layer
    if sparsity is not None:
        assert abs(density - (1 - sparsity)) * sum(mask.size for mask in kept.values()) <= rounding
    np.testing.assert_allclose(sum(result["weights_kept"]), sum(mask.sum() for mask in kept.values()))
    assert len(jax.tree.leaves(masks)) == len(kept)
