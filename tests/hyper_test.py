"""`h` of get_hyper: the trials that product, zip and list write, and what they refuse."""

import pytest

from sparsejax.launch.hyper import h


def test_product_varies_the_last_field_fastest():
    trials = h.product({"method": ["set", "rigl"], "sparsity": [0.9, 0.95]})
    assert trials == [
        {"method": "set", "sparsity": 0.9},
        {"method": "set", "sparsity": 0.95},
        {"method": "rigl", "sparsity": 0.9},
        {"method": "rigl", "sparsity": 0.95},
    ]


def test_zip_takes_the_values_side_by_side():
    trials = h.zip({"method": ["set", "rigl"], "method_args.drop_fraction": (0.3, 0.5)})
    assert trials == [
        {"method": "set", "method_args.drop_fraction": 0.3},
        {"method": "rigl", "method_args.drop_fraction": 0.5},
    ]


def test_lists_join_and_are_copies():
    one = {"method": "dense"}
    trials = h.list([one]) + h.product({"sparsity": [0.5]})
    trials[0]["method"] = "set"
    assert one == {"method": "dense"}
    assert len(trials) == 2


def test_generators_are_values_too():
    assert h.product({"sparsity": (1 - 2.0**-k for k in (1, 2))}) == [{"sparsity": 0.5}, {"sparsity": 0.75}]


@pytest.mark.parametrize(
    "write, words",
    [
        (
            lambda: h.product({"method": "rigl"}),
            ["h.product", "method", "'rigl'"],
        ),  # not four methods r, i, g, l
        (lambda: h.product({"sparsity": 0.9}), ["h.product", "sparsity", "0.9"]),
        (lambda: h.product({"sparsity": []}), ["sparsity", "no values"]),
        (lambda: h.product(["rigl"]), ["h.product", "dict"]),
        (lambda: h.zip({"method": ["set", "rigl"], "sparsity": [0.9]}), ["method has 2", "sparsity has 1"]),
        (lambda: h.list([["method", "rigl"]]), ["h.list", "dict"]),
        (lambda: h.list([{1: 2}]), ["h.list", "dict"]),
    ],
)
def test_mistakes_are_named(write, words):
    with pytest.raises(ValueError) as caught:
        write()
    assert all(word in str(caught.value) for word in words)
