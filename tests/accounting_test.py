"""FLOPs of training by method: published ratios, and every count by hand on a net of two layers."""

import math

import architectures
import jax
import numpy as np
import pytest

from sparsejax import distributions
from sparsejax.leaves import flax_layout
from sparsejax.training import accounting
from sparsejax.training.accounting import ACCOUNTING, Spent, relative_training_flops
from sparsejax.training.methods import METHODS
from sparsejax.training.storage import storage

LAYERS = {"a": 300, "b": 100}  # f_D = 400
HALF = {"a": 0.5, "b": 1.0}  # f_S = 250
TENTH = {"a": 0.1, "b": 0.1}  # f_S = 40


def spent(method, *stages, **arguments):
    """The training FLOPs by a method's rule of stages (densities, steps)."""
    densities, steps = zip(*stages)
    return ACCOUNTING[method](Spent(LAYERS, densities, steps, arguments))


def test_every_method_says_what_it_costs():
    assert METHODS.keys() <= ACCOUNTING.keys()
    later = "ste sr_ste dnw asp mdgf sdgf top_kast iss_p str spartan scl edge_popup jackpots movement acdc sap obert"
    assert {*later.split(), "bdwp", "ast", "cast"} <= ACCOUNTING.keys()


@pytest.mark.parametrize("method", ["static", "set", "snip", "grasp", "synflow", "dsr", "mest", "gmp", "asp", "str"])
def test_methods_that_train_what_they_keep(method):
    assert spent(method, (HALF, 10)) == 3 * 250
    assert spent(method, (HALF, 30), (TENTH, 10)) == pytest.approx(3 * (250 * 30 + 40 * 10) / 40)


def test_methods_that_need_every_gradient():
    for method in ("snfs", "ste", "sr_ste", "dnw", "sdgf", "ast", "spartan", "scl", "movement", "edge_popup"):
        assert spent(method, (HALF, 10)) == 2 * 250 + 400
    assert spent("bdwp", (HALF, 10)) == 250 + 250 + 400
    for method in ("mdgf", "iss_p", "cast"):
        assert spent(method, (HALF, 10), (TENTH, 10), update_end=10) == 3 * (400 + 40) / 2
    assert spent("mdgf", (HALF, 10), update_end=None) == 3 * 400
    for method in ("rigl", "itop", "srigl", "granet"):
        assert spent(method, (HALF, 10), update_every=4) == pytest.approx((3 * 250 * 4 + 2 * 250 + 400) / 5)
    assert spent("rigl", (HALF, 1), (TENTH, 3), update_every=9) == pytest.approx((3 * 92.5 * 9 + 2 * 92.5 + 400) / 10)
    assert spent("itop", (HALF, 10), update_every=4, grow="random") == 3 * 250


def test_phases_of_acdc():
    """A third of the time dense, the rest at a tenth: the mean of 3 f_D and 3 f_S."""
    dense = {"a": 1.0, "b": 1.0}
    assert spent("acdc", (dense, 10), (TENTH, 10), (dense, 10), (TENTH, 30)) == pytest.approx(3 * (400 + 2 * 40) / 3)


def test_top_kast_counts_its_backward_set():
    """Forward 40; backward sets of half of all weights, in which layers keep their proportions: 200."""
    assert spent("top_kast", (TENTH, 10), backward_sparsity=0.5) == pytest.approx(40 + 2 * 200)
    assert spent("top_kast", (TENTH, 10), backward_sparsity=None) == 3 * 40
    uneven = spent("top_kast", ({"a": 0.2, "b": 0.6}, 1), backward_sparsity=0.2)  # twice as dense; b ends at 1
    assert uneven == pytest.approx((60 + 60) + 2 * (300 * 0.4 + 100 * 1.0))


def resnet50(sparsity, densities):
    """Layers' FLOPs and the record of masks of ResNet-50 on ImageNet."""
    network = architectures.resnet50()
    layers = {path: 2 * macs for path, macs in architectures.macs(network).items()}
    if densities == "erk":
        by_layer = distributions.erk(architectures.params(network), 1 - sparsity, flax_layout)
    else:
        by_layer = {path: 1.0 if path == "stem" else 1 - sparsity for path in layers}
    return layers, by_layer


@pytest.mark.parametrize(
    ("method", "densities", "sparsity", "published"),
    [
        ("static", "uniform", 0.8, 0.23),
        ("rigl", "uniform", 0.8, 0.23),
        ("static", "erk", 0.8, 0.42),
        ("rigl", "erk", 0.8, 0.42),
        ("rigl", "erk", 0.9, 0.25),
        ("snfs", "erk", 0.8, 0.61),
        ("snfs", "erk", 0.9, 0.50),
    ],
)
def test_ratios_that_rigl_published(method, densities, sparsity, published):
    """RigL's table 2, ResNet-50 on ImageNet, update_every 100: training FLOPs over those of the dense net."""
    layers, by_layer = resnet50(sparsity, densities)
    record = {"step": 0, "density": {path: [density] for path, density in by_layer.items()}}
    config = {"method": method, "method_args": {"update_every": 100} if method == "rigl" else {}}
    ratio = relative_training_flops(config, [record], layers, 32_000)
    assert ratio == pytest.approx(published, abs=0.012)
    if (method, sparsity) == ("rigl", 0.8) and densities == "erk":
        assert 5 * ratio == pytest.approx(2.09, abs=0.03)


@pytest.mark.parametrize(("sparsity", "published"), [(0.8, 0.56), (0.9, 0.51)])
def test_gradual_pruning_as_rigl_published(sparsity, published):
    """Cubic from step 10,000 to 25,000 of 32,000, every 1,000, the first layer dense."""
    layers, _ = resnet50(sparsity, "uniform")
    records = []
    for step in (0, *range(10_000, 25_001, 1000)):
        now = sparsity * (1 - (1 - max(step - 10_000, 0) / 15_000) ** 3)
        _, by_layer = resnet50(now, "uniform")
        records.append({"step": step, "density": {path: [share] for path, share in by_layer.items()}})
    config = {"method": "gmp", "method_args": {}}
    assert relative_training_flops(config, records, layers, 32_000) == pytest.approx(published, abs=0.02)


def test_a_dense_run_costs_what_dense_costs():
    assert relative_training_flops({"method": "dense", "method_args": {}}, [], LAYERS, 10) == 1.0
    assert accounting.dense(Spent(LAYERS, [], [], {})) == 1200


def test_what_the_weights_take():
    """Two seeds of a 6 x 8 kernel and a bias: 10 and 12 kept; 2:4 along the inputs does not fit 6 rows."""
    masks = np.zeros((2, 6, 8), bool)
    masks[0].flat[:10] = masks[1].flat[:12] = True
    params = {
        "layer": {
            "kernel": jax.ShapeDtypeStruct((2, 6, 8), np.float32),
            "bias": jax.ShapeDtypeStruct((2, 8), np.float32),
        }
    }
    found = storage(params, {"layer/kernel": masks})
    assert found["parameters"] == 56 and found["mask_bits"] == 48
    assert found["parameter_sparsity"] == [38 / 56, 36 / 56]
    assert found["bytes"]["dense"] == [224] * 2 and found["bytes"]["bit_mask"] == [230] * 2
    assert found["bytes"]["csr"] == [10 * 8 + 4 * 7 + 32, 12 * 8 + 4 * 7 + 32]
    halves = np.broadcast_to((np.arange(8) % 4 < 2)[:, None], (8, 4))
    packed = storage({"w": jax.ShapeDtypeStruct((1, 8, 4), np.float32)}, {"w": halves[None]}, (2, 4))
    assert packed["bytes"]["n_m"] == [16 * 4 + math.ceil(16 * 2 / 8)]
    assert storage(params, {})["parameter_sparsity"] == [0.0, 0.0]
