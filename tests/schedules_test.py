"""Schedules against the formulas in NumPy, and plans against a walk over every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparsejax import schedules
from sparsejax.schedules import (
    check_plan,
    cosine,
    cubic,
    dense,
    drop_fraction,
    fixed,
    gradual,
    is_update,
    ramp_index,
    ramp_values,
    rewire,
    update_grid,
)

STEPS = np.arange(0, 140)


def over_steps(schedule, steps=STEPS):
    """The schedule at every step, with a traced step."""
    return np.asarray(jax.jit(jax.vmap(lambda step: jnp.asarray(schedule(step))))(jnp.asarray(steps)))


def updates(plan, steps=STEPS):
    return np.flatnonzero(over_steps(lambda step: is_update(plan, step), steps)).tolist()


# Plain schedules.


@pytest.mark.parametrize(
    ("initial", "final", "start", "end"), [(0.0, 0.8, 0, 100), (0.2, 0.9, 30, 97), (0.5, 0.5, 0, 10)]
)
def test_cubic_follows_its_formula_and_is_held_at_both_ends(initial, final, start, end):
    t = np.clip(STEPS, start, end)
    expected = final + (initial - final) * (1 - (t - start) / (end - start)) ** 3
    found = over_steps(cubic(initial, final, start, end))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)
    assert (found[end:] == np.float32(final)).all()


def test_cubic_over_no_steps_is_a_jump():
    assert over_steps(cubic(0.0, 0.8, 5, 5), [4, 5, 6]).tolist() == np.float32([0.0, 0.8, 0.8]).tolist()


@pytest.mark.parametrize(("start", "end"), [(0, 100), (20, 57)])
def test_cosine_follows_its_formula_and_ends_at_zero(start, end):
    t = np.clip(STEPS, start, end)
    expected = 0.3 / 2 * (1 + np.cos(np.pi * (t - start) / (end - start)))
    found = over_steps(cosine(0.3, start, end))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
    assert (found[end:] == 0).all()
    assert found[start] == np.float32(0.3)


def test_cosine_without_an_end_is_constant():
    assert (over_steps(cosine(0.3, 0, None)) == np.float32(0.3)).all()


def test_a_drop_fraction_may_be_traced():
    found = jax.jit(lambda alpha, step: cosine(alpha, 0, 100)(step))(0.4, 50)
    np.testing.assert_allclose(found, 0.2, atol=1e-7)


def test_constant_and_one_shot():
    assert (over_steps(schedules.constant(0.7)) == np.float32(0.7)).all()
    assert over_steps(schedules.one_shot(3, 0.9), [0, 2, 3, 4]).tolist() == np.float32([0, 0, 0.9, 0.9]).tolist()


@pytest.mark.parametrize(("every", "start", "end"), [(4, 3, 10), (1, 0, None), (100, 0, 75), (7, 0, 21), (7, 0, 22)])
def test_update_grid(every, start, end):
    expected = [t for t in STEPS if t > start and (t - start) % every == 0 and (end is None or t < end)]
    assert np.flatnonzero(over_steps(update_grid(every, start, end))).tolist() == expected


# Plans.


def cubic_share(initial, start, end):
    return lambda t: 1 + (initial - 1) * (1 - (t - start) / (end - start)) ** 3


RAMPS = [
    # plan, begin, until, every, initial
    ((dense(3), gradual(10, 4)), 3, 10, 4, 0.0),
    ((gradual(100, 10),), 0, 100, 10, 0.0),
    ((gradual(99, 10, 0.5),), 0, 99, 10, 0.5),
    ((dense(20), gradual(50, 7, 0.25), fixed()), 20, 50, 7, 0.25),
    ((dense(5), gradual(12, 100)), 5, 12, 100, 0.0),
    ((dense(30), gradual(60, 5), rewire(9, 0.3, until=110), fixed()), 30, 60, 5, 0.0),
    ((rewire(9, 0.3, until=30), gradual(60, 4), fixed()), 30, 60, 4, 0.0),
]


@pytest.mark.parametrize(("plan", "begin", "until", "every", "initial"), RAMPS)
def test_a_ramp_follows_the_cubic_rule_and_ends_exactly_on_its_target(plan, begin, until, every, initial):
    values = ramp_values(plan)
    share = cubic_share(initial, begin, until)
    grid = range(begin, until, every)
    np.testing.assert_allclose(values[:-1], [share(t) for t in grid], rtol=0, atol=1e-15)
    assert values[-1] == 1.0
    assert (np.diff(values) > 0).all()
    index = over_steps(lambda step: ramp_index(plan, step))
    for i, t in enumerate(grid):
        assert index[t] == i
    assert (index[until:] == len(values) - 1).all()
    assert index.max() < len(values)


@pytest.mark.parametrize(("plan", "begin", "until", "every", "initial"), RAMPS)
def test_the_value_of_a_ramp_changes_at_update_steps_alone(plan, begin, until, every, initial):
    """What the index names and when masks change must agree, or a change of density would be missed."""
    values = np.array(ramp_values(plan))[over_steps(lambda step: ramp_index(plan, step))]
    ramp_updates = [t for t in updates(plan) if begin <= t <= until]
    expected = [t for t in range(begin, until, every) if t > begin or initial > 0] + [until]
    assert ramp_updates == expected
    changes = np.flatnonzero(np.diff(values)) + 1
    assert set(changes) <= set(ramp_updates)
    assert set(ramp_updates) - set(changes) <= {begin}


def test_the_target_is_met_where_the_grid_misses_the_end():
    """Start 3, end 10, every 4: the grid has 7 and 11, the masks must still reach the target at 10."""
    plan = (dense(3), gradual(10, 4))
    assert updates(plan) == [7, 10]
    assert ramp_values(plan)[-1] == 1.0


@pytest.mark.parametrize("at_step", [0, 1, 25])
def test_one_shot_as_a_plan_updates_once(at_step):
    plan = (dense(at_step), gradual(at_step, 1))
    check_plan(plan)
    assert updates(plan) == [at_step]
    assert ramp_values(plan) == [1.0]
    assert set(over_steps(lambda step: ramp_index(plan, step))) == {0}


def test_phases_follow_one_another():
    plan = (dense(10), gradual(40, 12), rewire(20, 0.3, until=101), fixed())
    check_plan(plan)
    assert updates(plan) == [22, 34, 40, 60, 80, 100]
    fractions = over_steps(lambda step: drop_fraction(plan, step))
    t = np.arange(41, 101)
    np.testing.assert_allclose(fractions[41:101], 0.15 * (1 + np.cos(np.pi * (t - 40) / 61)), atol=1e-7)
    assert (fractions[:41] == 0).all()
    assert (fractions[101:] == 0).all()


def test_two_rewiring_phases_each_have_their_own_fraction():
    plan = (rewire(5, 0.5, until=50), rewire(10, 0.1))
    assert updates(plan) == [*range(5, 50, 5), *range(60, 140, 10)]
    fractions = over_steps(lambda step: drop_fraction(plan, step))
    assert fractions[1] < 0.5
    assert (fractions[51:] == np.float32(0.1)).all()


def test_rewiring_does_not_start_at_step_zero_and_stops_below_its_end():
    assert updates((rewire(20, 0.3, until=100),)) == [20, 40, 60, 80]
    assert updates((rewire(20, 0.3),)) == [20, 40, 60, 80, 100, 120]


def test_plans_without_changes():
    for plan in ((fixed(),), (dense(10),), (dense(10), fixed())):
        check_plan(plan)
        assert updates(plan) == []
        assert drop_fraction(plan, jnp.int32(3)) is None
        assert ramp_values(plan) == [1.0]
        assert ramp_index(plan, jnp.int32(3)) == 0


def test_large_steps_are_exact():
    """float32 would round these steps."""
    plan = (rewire(1_000_001, 0.3),)
    steps = np.array([2_000_002_000 + step for step in (-1, 0, 1)])
    assert updates(plan, steps) == [1]
    ramp = (dense(2_000_000_000), gradual(2_000_000_007, 3))
    assert updates(ramp, 2_000_000_000 + np.arange(9)) == [3, 6, 7]


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ((fixed(), dense(10)), "only the last phase may have until=None"),
        ((rewire(10, 0.3), gradual(10, 1)), "only the last phase may have until=None"),
        ((dense(100), gradual(50, 10)), "until=50 lies before the end of the phase before it, 100"),
        ((dense(-1),), "until=-1"),
        ((gradual(100, 0),), "update_every=0 must be at least 1"),
        ((rewire(-5, 0.3),), "update_every=-5 must be at least 1"),
        ((rewire(10, 1.5),), r"drop_fraction=1.5 must lie in \[0, 1\]"),
        ((rewire(10, -0.1),), r"drop_fraction=-0.1 must lie in \[0, 1\]"),
        ((gradual(100, 10, 1.5),), r"initial=1.5 must lie in \[0, 1\]"),
        ((gradual(100, 10), gradual(200, 10)), "at most one phase can be gradual"),
        ((gradual(None, 10),), "until=None"),
        ((dense(2.5),), "until=2.5"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(plan, says):
    with pytest.raises(ValueError, match=says):
        check_plan(plan)


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "10"])
def test_a_number_of_steps_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match=f"update_every={value} must be an integer of at least 1"):
        schedules.check_steps(1, update_every=value)
    schedules.check_steps(0, update_start=0, update_end=7)
