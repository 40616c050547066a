"""Procedures: their masks, rewinding and averages against plain NumPy, from the checkpoints that the rounds left."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import cli
from sparsejax.data import digits
from sparsejax.masks import get_masks
from sparsejax.models import MODELS
from sparsejax.training import ConfigError, resolve, train
from sparsejax.training.checkpoint import Checkpoints
from sparsejax.training.metrics import read_metrics
from sparsejax.training.order import epoch_order
from sparsejax.training.procedures import (
    PROCEDURES,
    distilled_pruning,
    iterative_magnitude_pruning,
    model_soup,
    sap_rounds,
    spdf,
)
from sparsejax.training.procedures.averaging import greedy, mean_of, recalibrator
from sparsejax.training.procedures.pruning import full_masks, prune_fraction, prune_to
from sparsejax.training.start import Start, describe
from sparsejax.training.state import sparse_state
from sparsejax.training.trial import prepare

SMALL = {
    "model_args": {"features": [12]},
    "batch_size": 200,  # 7 steps an epoch
    "epochs": 3,
    "seeds": 2,
    "optimizer": "sgd",
    "momentum": 0.0,
    "learning_rate": 0.1,
    "schedule": "cosine",
    "sparsity": 0.8,
    "checkpoint_every_epochs": 1,
    "keep_checkpoints": 9,
}
REWIND = 7
CONTROLS = ["reinit", "shuffled", "random"]
RETRAIN = {"epochs": 1, "learning_rate": 1.0}
WEIGHTS = {"Dense_0": 64 * 12, "Dense_1": 12 * 10}


def state_of(workdir, step=None):
    """The newest state of a run, or the one at a step, on the host."""
    config = json.loads((workdir / "config.json").read_text())
    if step is not None:
        (workdir.parent / f"{workdir.name}-{step}").mkdir()
        (workdir.parent / f"{workdir.name}-{step}" / str(step)).symlink_to(workdir / "checkpoints" / str(step))
    folder = workdir / "checkpoints" if step is None else workdir.parent / f"{workdir.name}-{step}"
    checkpoints = Checkpoints(folder, keep=9)
    _, state = checkpoints.restore(prepare(resolve(config | {"distill": {}})).like)
    checkpoints.close()
    return jax.device_get(state._replace(opt_state=state.opt_state))


def masks_of(state):
    return {layer: np.asarray(part["kernel"]) for layer, part in get_masks(state.opt_state).items()}


def weights_of(state):
    return {layer: np.asarray(part["kernel"]) for layer, part in state.params.items()}


def begun(workdir):
    return json.loads((workdir / "start.json").read_text())


def as_tree(masks):
    return {layer: {"bias": None, "kernel": mask} for layer, mask in masks.items()}


def smallest_gone(weight, mask, gone):
    """NumPy: a boolean mask without the `gone` smallest |w| of what it keeps; of equal ones the last go."""
    places = np.flatnonzero(mask.ravel())
    order = sorted(places, key=lambda i: (abs(float(weight.ravel()[i])), -i))
    out = mask.ravel().copy()
    out[order[:gone]] = False
    return out.reshape(mask.shape)


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


# a run that begins elsewhere


def test_a_run_goes_on_from_a_step_with_the_bits_of_one_that_was_not_cut(tmp_path):
    """SGD without momentum has no state, so that a fresh optimizer is no other one: rates and order go on."""
    train(SMALL, tmp_path / "whole")
    assert train(SMALL, tmp_path / "part", until=10)["steps"] == 10
    part = state_of(tmp_path / "part")
    assert int(part.step) == 10
    train(SMALL, tmp_path / "rest", start=Start(part.params, part.model_state, None, 10))
    whole, rest = state_of(tmp_path / "whole"), state_of(tmp_path / "rest")
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(rest.params), strict=True):
        assert a.tobytes() == b.tobytes()
    with pytest.raises(ConfigError, match="began elsewhere"):
        train(SMALL, tmp_path / "rest")


def test_the_optimizer_is_fresh_and_its_schedules_are_at_the_step():
    """Whatever wraps what: clipping, AdamW's decay, a method."""
    config = SMALL | {"optimizer": "adamw", "momentum": None, "clip_norm": 1.0, "weight_decay": 0.1}
    for method in ("dense", "static"):
        trial = prepare(resolve(config | {"method": method}), Start(step=9))
        state, _ = trial.init()
        counts = {
            jax.tree_util.keystr(path): leaf.tolist()
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
            if jnp.issubdtype(leaf.dtype, jnp.integer) and leaf.shape == (2,)
        }
        at_nine = [path for path, count in counts.items() if count == [9, 9]]
        assert len(at_nine) == (1 if method == "dense" else 2) and int(state.step) == 9
        sparse = sparse_state(state.opt_state)
        adam = (sparse.inner_state if sparse else state.opt_state)[1][0]
        assert adam.count.tolist() == [0, 0]
        assert not any(np.any(leaf) for leaf in jax.tree.leaves((adam.mu, adam.nu)))


# what is pruned, against NumPy


def trees():
    rng = np.random.default_rng(0)
    plain = {"a": rng.normal(size=(2, 5, 7)), "b": rng.normal(size=(2, 7, 3))}
    ties = {"a": rng.integers(-2, 3, (2, 6, 4)).astype(float), "b": rng.integers(-2, 3, (2, 9, 2)).astype(float)}
    convolution = {
        "a": rng.normal(size=(3, 2, 2, 3, 4)),
        "b": rng.normal(size=(3, 4, 5)),
        "c": rng.normal(size=(3, 5, 2)),
    }
    arrays = lambda tree: {name: {"kernel": leaf.astype(np.float32)} for name, leaf in tree.items()}
    return [arrays(tree) for tree in (plain, ties, convolution)]


@pytest.mark.parametrize("tree", range(3))
@pytest.mark.parametrize("scope", ["layer", "global", "neuron"])
def test_five_rounds_of_pruning(tree, scope):
    params = trees()[tree]
    masks = full_masks(params)
    wanted = {name: np.ones(part["kernel"].shape, bool) for name, part in params.items()}
    last = max(params)
    for number in range(5):
        drawn = {n: {"kernel": np.roll(part["kernel"], number, axis=1)} for n, part in params.items()}
        masks = prune_fraction(drawn, masks, 0.3, scope=scope, output_fraction=0.15)
        for seed in range(len(wanted["a"])):
            if scope == "global":
                flat = np.concatenate([drawn[n]["kernel"][seed].ravel() for n in wanted])
                mask = np.concatenate([wanted[n][seed].ravel() for n in wanted])
                left, start = smallest_gone(flat, mask, int(0.3 * mask.sum() + 1e-6)), 0
                for n in wanted:
                    size = wanted[n][seed].size
                    wanted[n][seed] = left[start : start + size].reshape(wanted[n][seed].shape)
                    start += size
                continue
            for n in wanted:
                share = 0.15 if n == last else 0.3
                weight, mask = drawn[n]["kernel"][seed], wanted[n][seed]
                if scope == "layer":
                    wanted[n][seed] = smallest_gone(weight, mask, int(share * mask.sum() + 1e-6))
                    continue
                for unit in range(weight.shape[-1]):
                    gone = int(share * mask[..., unit].sum() + 1e-6)
                    wanted[n][seed][..., unit] = smallest_gone(weight[..., unit], mask[..., unit], gone)
        assert_same({n: part["kernel"] for n, part in masks.items()}, wanted)


# lottery tickets


@pytest.fixture(scope="module")
def tickets(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("imp") / "imp"
    rounds = list(iterative_magnitude_pruning(SMALL, workdir, rounds=2, rewind=REWIND, controls=CONTROLS))
    return workdir, {done.name: done for done in rounds}


def test_masks_of_each_round(tickets):
    """20 % of each layer go, 10 % of the output layer, of every seed by its own weights at the end of the round."""
    _, rounds = tickets
    assert list(rounds) == [
        "round_00",
        *(f"round_{r:02d}{c}" for r in (1, 2) for c in ("", *(f"_{c}" for c in CONTROLS))),
    ]
    masks = {layer: np.ones((2, *shape), bool) for layer, shape in (("Dense_0", (64, 12)), ("Dense_1", (12, 10)))}
    for number in (1, 2):
        weights = weights_of(state_of(rounds[f"round_{number - 1:02d}"].workdir))
        for layer, share in (("Dense_0", 0.2), ("Dense_1", 0.1)):
            for seed in range(2):
                gone = int(share * masks[layer][seed].sum() + 1e-6)
                masks[layer][seed] = smallest_gone(weights[layer][seed], masks[layer][seed], gone)
        done = rounds[f"round_{number:02d}"]
        assert_same(masks_of(state_of(done.workdir)), masks)
        kept = [int(sum(mask[seed].sum() for mask in masks.values())) for seed in range(2)]
        assert done.entry["weights_kept"] == done.result["weights_kept"] == kept
        assert done.result["sparsity"] == round(1 - sum(kept) / 2 / sum(WEIGHTS.values()), 6)


def test_every_round_begins_at_the_weights_of_the_step(tickets, tmp_path):
    """Those of an ordinary dense run at that step, bit for bit, with zeros off the masks."""
    workdir, rounds = tickets
    train(SMALL, tmp_path / "dense")
    early = state_of(tmp_path / "dense", step=REWIND)
    assert int(early.step) == REWIND
    for a, b in zip(jax.tree.leaves(early.params), jax.tree.leaves(state_of(workdir / "rewind").params), strict=True):
        assert a.tobytes() == b.tobytes()
    for name in ("round_01", "round_02", "round_02_shuffled", "round_02_random"):
        masks = masks_of(state_of(rounds[name].workdir))
        start = Start(early.params, early.model_state, as_tree(masks), REWIND)
        assert describe(start, None) == begun(rounds[name].workdir)  # this is what it was given
        config = resolve(json.loads((rounds[name].workdir / "config.json").read_text()))
        state = jax.device_get(prepare(config, start).init()[0])
        assert int(state.step) == REWIND
        for layer, weight in weights_of(state).items():
            np.testing.assert_array_equal(weight, np.where(masks[layer], early.params[layer]["kernel"], 0))
            assert weight[masks[layer]].tobytes() == np.asarray(early.params[layer]["kernel"])[masks[layer]].tobytes()
            np.testing.assert_array_equal(state.params[layer]["bias"], early.params[layer]["bias"])


def test_rates_go_on_from_the_step(tickets, tmp_path):
    _, rounds = tickets
    rates = {}
    for name in ("round_00", "round_02"):
        records = [r for r in read_metrics(rounds[name].workdir / "metrics.jsonl") if r["kind"] == "train"]
        assert records[0]["step"] > REWIND
        rates[name] = [(r["step"], r["lr"]) for r in records]
    assert rates["round_00"] == rates["round_02"]
    step, rate = rates["round_02"][-1]
    assert step == 21 and rate == pytest.approx(0.05 * (1 + np.cos(np.pi * 20 / 21)), rel=1e-5)


def test_controls(tickets):
    workdir, rounds = tickets
    found = {name: masks_of(state_of(done.workdir)) for name, done in rounds.items() if name != "round_00"}
    for number in (1, 2):
        name = f"round_{number:02d}"
        assert_same(found[f"{name}_reinit"], found[name])
        assert begun(rounds[f"{name}_reinit"].workdir)["sha256"] != begun(rounds[name].workdir)["sha256"]
        for control in ("shuffled", "random"):
            for layer, mask in found[f"{name}_{control}"].items():
                assert (mask != found[name][layer]).any()
                np.testing.assert_array_equal(mask.sum((1, 2)), found[name][layer].sum((1, 2)))
    for layer, mask in found["round_02_random"].items():
        assert (mask <= found["round_01_random"][layer]).all()  # they shrink
    initial = prepare(resolve(SMALL)).programs.init_model(jnp.arange(2))[0]
    first = [np.asarray(initial[layer]["kernel"]) for layer in WEIGHTS]
    begins = state_of(workdir / "rewind").params
    assert all((begins[layer]["kernel"] != weight).any() for layer, weight in zip(WEIGHTS, first, strict=True))
    lines = [json.loads(line) for line in (workdir / "rounds.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == list(rounds)
    assert [line["branch"] for line in lines] == ["", *(["", *CONTROLS] * 2)]


def test_a_finished_procedure_trains_nothing_and_says_the_same(tickets, monkeypatch):
    workdir, rounds = tickets
    before = (workdir / "rounds.jsonl").read_bytes()
    monkeypatch.setattr("sparsejax.training.loop._loop", None)
    again = iterative_magnitude_pruning(SMALL, workdir, rounds=2, rewind=REWIND, controls=",".join(CONTROLS))
    assert [done.entry for done in again] == [done.entry for done in rounds.values()]
    assert (workdir / "rounds.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="belongs to another procedure: rounds is 2 there and 3 here"):
        next(iterative_magnitude_pruning(SMALL, workdir, rounds=3, rewind=REWIND, controls=CONTROLS))
    with pytest.raises(ConfigError, match="belongs to another procedure: procedure is 'imp' there and 'soup' here"):
        next(model_soup(SMALL, workdir))


def test_the_command_line_and_its_report(tickets, capsys):
    """The same procedure from a config.json: nothing is left to do; the report shows every branch."""
    workdir, rounds = tickets
    args = ["--args.rounds=2", f"--args.rewind={REWIND}", "--args.controls=reinit,shuffled,random"]
    config = ["--config", str(workdir / "rewind/config.json"), "--config.sparsity=0.8"]
    assert cli.main(["procedure", "imp", *config, "--workdir", str(workdir), *args]) == 0
    shown = capsys.readouterr().out
    assert [line.partition(":")[0] for line in shown.splitlines()[:-1]] == list(rounds)
    assert cli.main(["report", str(workdir)]) == 0
    table = capsys.readouterr().out
    assert all(table.count(f"branch={control}") == 2 for control in CONTROLS) and (workdir / "accuracy.png").exists()


# soups


@pytest.fixture(scope="module")
def soup(tmp_path_factory):
    out = {}
    for masks in ("shared", "own"):
        workdir = tmp_path_factory.mktemp("soup") / masks
        rounds = model_soup(SMALL, workdir, phases=2, members=2, retrain=RETRAIN, masks=masks)
        out[masks] = {done.name: done for done in rounds}
    return out


def global_cut(weights, masks, kept):
    """NumPy: the largest |w| of all layers of each seed."""
    out = {name: np.zeros_like(mask) for name, mask in masks.items()}
    for seed in range(2):
        flat = np.concatenate([weights[n][seed].ravel() for n in masks])
        mask = np.concatenate([masks[n][seed].ravel() for n in masks])
        left, start = smallest_gone(flat, mask, int(mask.sum()) - kept), 0
        for n in masks:
            size = masks[n][seed].size
            out[n][seed] = left[start : start + size].reshape(masks[n][seed].shape)
            start += size
    return out


def test_a_soup_is_the_mean_of_members_under_one_mask(soup):
    states = {name: state_of(done.workdir) for name, done in soup["shared"].items()}
    parent, masks = states["dense"], {layer: np.ones_like(w, bool) for layer, w in weights_of(states["dense"]).items()}
    size = sum(WEIGHTS.values())
    for phase, share in ((1, 0.5), (2, 1.0)):
        kept = size - int((1 - 0.2**share) * size + 1e-6)  # p = 1 - (1 - S)^(1/2) of what is left, twice
        masks = global_cut(weights_of(parent), masks, kept)
        members = [states[f"phase_{phase}_member_{number}"] for number in (0, 1)]
        for member in members:
            assert_same(masks_of(member), masks)
        average = states[f"phase_{phase}_soup"]
        assert_same(masks_of(average), masks)
        leaves = zip(jax.tree.leaves(average.params), *(jax.tree.leaves(m.params) for m in members), strict=True)
        for found, *each in leaves:
            assert (each[0] != each[1]).any()
            wanted = np.mean(np.stack(each).astype(np.float64), axis=0).astype(np.float32)
            assert found.tobytes() == wanted.tobytes()
        parent = average
        done = soup["shared"][f"phase_{phase}_soup"]
        assert done.entry["weights_kept"] == [kept] * 2 and done.entry["steps"] == 0
    assert soup["shared"]["phase_2_member_1"].result["steps"] == 7


def test_the_average_of_different_masks_is_denser(soup):
    states = {name: state_of(done.workdir) for name, done in soup["own"].items()}
    members = [states[f"phase_2_member_{number}"] for number in (0, 1)]
    first, second = map(masks_of, members)
    union = {layer: first[layer] | second[layer] for layer in first}
    assert any((first[layer] != second[layer]).any() for layer in first)
    assert_same(masks_of(states["union"]), union)
    mean = {n: (a + b) / 2 for (n, a), b in zip(weights_of(members[0]).items(), weights_of(members[1]).values())}
    kept = int(sum(mask[0].sum() for mask in first.values()))
    assert_same(masks_of(states["pruned_union"]), global_cut(mean, union, kept))
    assert_same(weights_of(states["union"]), mean)
    assert soup["own"]["union"].entry["weights_kept"][0] > kept
    assert soup["own"]["pruned_union"].entry["weights_kept"] == [kept] * 2


def test_greedy_takes_what_does_not_hurt():
    """Members 0, 1, 2 in each seed's own order; the score is minus the distance from a goal of each seed."""
    goal = np.array([1.0, 5.0])
    values = np.array([[1.0, 0.0], [1.5, 4.0], [0.5, 6.5]])  # members, seeds
    members = [({"w": np.float32(value)}, {}) for value in values]
    score = lambda variables: (-abs(np.asarray(variables[0]["w"], np.float64) - goal)).tolist()
    (params, _), chosen = greedy(members, [score(member) for member in members], score)
    # Seed 0: 0 is exact; with 1: 1.25; with 2: .75: worse. Seed 1: 1 (off by 1), with 2: 5.25, with 0: 3.5, worse.
    assert chosen == [[0], [1, 2]] and params["w"].tolist() == [1.0, 5.25]
    assert mean_of([member[0] for member in members])["w"].tolist() == [1.0, 3.5]


class WithNorm(nn.Module):
    """A layer, BatchNorm, the output."""

    classes: int = 10

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(x.reshape(len(x), -1)))
        return nn.Dense(self.classes)(x)


def test_statistics_of_batchnorm_are_those_of_the_batches(monkeypatch):
    monkeypatch.setitem(MODELS, "with_norm", WithNorm)
    trial = prepare(resolve({"model": "with_norm", "batch_size": 200, "seeds": 2}))
    params, model_state = jax.device_get(trial.programs.init_model(jnp.arange(2)))
    _, found = recalibrator(trial, batches=3)((params, model_state))
    data = digits()
    order = np.asarray(epoch_order([0, 1], 0, len(data.train_y)))
    x = (np.asarray(data.train_x, np.float64).reshape(len(data.train_y), -1) - data.offset) * data.scale
    for seed in range(2):
        layer = params["Dense_0"]
        batches = [
            x[order[seed, k * 200 : (k + 1) * 200]] @ layer["kernel"][seed] + layer["bias"][seed] for k in range(3)
        ]
        stats = found["batch_stats"]["BatchNorm_0"]
        np.testing.assert_allclose(stats["mean"][seed], np.mean([b.mean(0) for b in batches], 0), rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(stats["var"][seed], np.mean([b.var(0) for b in batches], 0), rtol=2e-3)


# SAP


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_sap_prunes_what_the_index_says(tmp_path, scope):
    rounds = list(sap_rounds(SMALL, tmp_path / "sap", rounds=2, eta=0.0, gamma=1.1, beta=0.2, scope=scope))
    masks = {layer: np.ones((2, *shape), bool) for layer, shape in (("Dense_0", (64, 12)), ("Dense_1", (12, 10)))}

    def gone(w):
        d = len(w)
        index = 1 - (np.abs(w) ** 0.5).mean() ** 2 / np.abs(w).mean()
        needed = np.ceil(d * (1 - index))  # (1 - I)^(qp / (q - p)) with p = 1/2, q = 1
        return int(min(1.1 * (d - needed), 0.2 * d) + 1e-6), index

    for number, done in enumerate(rounds):
        state = state_of(done.workdir)
        if number:
            assert_same(masks_of(state), masks)
        weights = {layer: w.astype(np.float64) for layer, w in weights_of(state).items()}
        for seed in range(2):
            kept = [weights[layer][seed][masks[layer][seed]] for layer in masks]
            together, index = gone(np.concatenate(kept))
            assert done.entry["pq_index"][seed] == pytest.approx(index, abs=1e-6)
            if scope == "global":
                total = sum(map(len, kept)) - together
                one = {layer: mask[[seed, seed]] for layer, mask in masks.items()}
                cut = global_cut({n: w[[seed, seed]] for n, w in weights_of(state).items()}, one, total)
                for layer in masks:
                    masks[layer][seed] = cut[layer][0]
            else:
                for layer, w in zip(masks, kept, strict=True):
                    masks[layer][seed] = smallest_gone(weights_of(state)[layer][seed], masks[layer][seed], gone(w)[0])


# sparse pre-training, distillation


def test_spdf_goes_on_without_the_mask(tmp_path):
    config = SMALL | {"method": "static", "method_args": {"distribution": "uniform"}}
    sparse, dense = spdf(config, tmp_path / "spdf", finetune={"epochs": 1, "learning_rate": 0.05})
    last = state_of(sparse.workdir)
    assert describe(Start(last.params, last.model_state), None) == begun(dense.workdir)
    tuned = state_of(dense.workdir)
    assert int(tuned.step) == 7 and sparse.entry["weights_kept"][0] < dense.entry["weights_kept"][0] == 888
    off = ~masks_of(last)["Dense_0"]
    assert not weights_of(last)["Dense_0"][off].any() and np.mean(weights_of(tuned)["Dense_0"][off] != 0) > 0.5


def test_a_student_learns_from_its_teacher(tmp_path):
    config = SMALL | {"method": "one_shot", "method_args": {"at_step": 7}}
    teacher, student = distilled_pruning(config, tmp_path / "run", alpha=0.7, teacher={"epochs": 1}, from_teacher=True)
    assert student.result["weights_kept"][0] == 178 and teacher.result["steps"] == 7
    assert json.loads((student.workdir / "config.json").read_text())["distill"] == {
        "workdir": str(teacher.workdir), "alpha": 0.7, "temperature": 2.0,
    }  # fmt: skip
    last = state_of(teacher.workdir)
    assert describe(Start(last.params, last.model_state), None) == begun(student.workdir)


# mistakes

MISTAKES = [
    ("imp", {"rounds": 0}, "rounds: 0 is not an integer >= 1"),
    ("imp", {"fraction": 1.0}, r"fraction: 1.0 is not a number in \(0, 1\)"),
    ("imp", {"fraction": "half"}, "fraction: 'half' is not a number"),
    ("imp", {"output_fraction": -0.1}, "output_fraction: -0.1"),
    ("imp", {"scope": "layers"}, "scope: 'layers' is not one of layer, global, neuron"),
    ("imp", {"rewind": 22}, "rewind: 22 is more than the 21 steps of a round"),
    ("imp", {"controls": ["reinitialised"]}, "controls: 'reinitialised' is not one of reinit, shuffled, random"),
    ("imp", {"controls": 5}, "controls: 5 is not a list"),
    ("sap_rounds", {"p": 1.5}, "p: 1.5"),
    ("sap_rounds", {"q": 0.4}, "q: 0.4 is not a number > p = 0.5"),
    ("sap_rounds", {"beta": 1}, "beta: 1 is"),
    ("soup", {"members": 1}, "members: 1 is not an integer >= 2"),
    ("soup", {"vary": "width"}, "vary: 'width' is not one of seed"),
    ("soup", {"vary": "epochs"}, "values: None is not a list of 3 values of epochs"),
    ("soup", {"vary": "epochs", "values": [1, 2, 0]}, "epochs: 0 is not an integer >= 1"),
    ("soup", {"values": [1]}, "values: .* leave values out"),
    ("soup", {"average": "mean"}, "average: 'mean' is not one of uniform, greedy"),
    ("soup", {"masks": "all"}, "masks: 'all' is not one of shared, own"),
    ("soup", {"retrain": {"epocs": 1}}, "unknown 'epocs'; did you mean 'epochs'"),
    ("soup", {"retrain": 3}, "retrain: 3 is not a dict of fields"),
    ("spdf", {}, "method: 'dense' has no sparse pre-training"),
    ("spdf", {"finetune": {"method": "rigl"}}, "finetune: method='rigl'; fine-tuning is dense"),
    ("distilled", {}, "method: 'dense' prunes nothing"),
    ("distilled", {"temperature": 0}, "temperature: 0 is not a number > 0"),
]


@pytest.mark.parametrize("name, arguments, message", MISTAKES)
def test_mistakes_are_told_before_anything_is_written(name, arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        next(PROCEDURES[name](SMALL, tmp_path / "run", **arguments))
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_a_start(tmp_path):
    params, _ = jax.device_get(prepare(resolve(SMALL)).programs.init_model(jnp.arange(2)))
    masks = as_tree({layer: np.ones_like(part["kernel"], bool) for layer, part in params.items()})
    for changes, given, message in (
        ({}, {"start": Start(params, step=22)}, "start: step 22 is not in 0..21"),
        ({}, {"until": 22}, "until: 22 is not in 0..21"),
        ({}, {"start": Start(params, {}, masks)}, "masks were given, but method 'dense' has none"),
        ({"seeds": 3}, {"start": Start(params)}, "params Dense_0/bias is .2, 12., of the model it is .3, 12."),
        ({"method": "gmp"}, {"start": Start(params, {}, masks)}, "method 'gmp': it chooses its own masks"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(SMALL | changes, tmp_path / "run", **given)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_not_pruned(tmp_path):
    """Where a run may go on with them, the next round is refused."""
    config = SMALL | {"learning_rate": 1e30, "stop_on_nonfinite": False}
    with pytest.raises(ConfigError, match="round_00: a weight is not finite"):
        list(iterative_magnitude_pruning(config, tmp_path / "run", rounds=1))


def test_the_largest_of_few_are_kept():
    """A layer may lose all its weights, not more."""
    masks = {"a": {"kernel": np.ones((1, 2, 2), bool)}}
    params = {"a": {"kernel": np.float32([[[1, 2], [3, 4]]])}}
    for kept in range(5):
        assert prune_to(params, masks, [kept])["a"]["kernel"].sum() == kept
