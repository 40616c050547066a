"""Decoding: a cache changes nothing, texts equal those of a loop without one, and draws follow the probabilities."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import KEY, drawn, logits_of, quick, texts

from sparsejax.models.attention import dense
from sparsejax.models.decoding import generate, sample
from sparsejax.models.gpt import GPT
from sparsejax.models.rnn import RNN

TINY = dict(vocab=11, layers=2, width=16, heads=4, context=8)
MODELS = {
    "gpt": GPT(**TINY),
    "scan, rotary, grouped": GPT(**TINY, scan=True, positions="rotary", kv_heads=2, remat=True),
    "another attention": GPT(**(TINY | {"layers": 1}), attention=lambda q, k, v: dense(q, k, v)),
    "gru": RNN(vocab=11, embed=4, hidden=6, readout=(5,), layers=2),
    "lstm": RNN(vocab=11, embed=4, hidden=6, readout=(), cell="lstm"),
}


@partial(quick, static_argnums=0)
def decode(model, variables, tokens):
    return model.apply(variables, tokens, decode=True, mutable=["cache"])


@pytest.mark.parametrize("name", MODELS)
def test_logits_with_a_cache_equal_those_without(name):
    model, tokens = MODELS[name], texts(2, 8)
    params = drawn(model, spread=0.7)
    seen, variables = [], {"params": params}
    for start, end in ((0, 3), (3, 8)):  # single tokens are what `generate` below adds
        logits, cache = decode(model, variables, tokens[:, start:end])
        seen.append(logits)
        variables = {"params": params} | cache
    expected = logits_of(model, params, tokens)
    np.testing.assert_allclose(np.concatenate(seen, axis=1), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected[:, 1:] - expected[:, :-1]).max() > 0.1


@partial(quick, static_argnums=0, static_argnames=("steps", "top_k", "context"))
def generated(model, params, prompt_BxL, key, steps, temperature=1.0, top_k=None, context=None):
    """`generate`, within a program that compiles in a hurry."""
    return generate(model.apply, params, prompt_BxL, key, steps, temperature, top_k, context=context)


def slowly(model, params, prompt_BxL, steps, context):
    """Without a cache, by the rule of `generate`: the window starts anew whenever `context` tokens are in it."""
    text, length = np.asarray(prompt_BxL), prompt_BxL.shape[1]
    start = max(0, length - context)
    for step in range(steps):
        if text.shape[1] - start > context:
            start = text.shape[1] - (context - context // 2)
        window = text[:, start:]
        last = window.shape[1] - 1
        padded = np.pad(window, ((0, 0), (0, context - window.shape[1])))  # causal: what follows is not seen
        logits = logits_of(model, params, jnp.asarray(padded))[:, last]
        text = np.column_stack([text, sample(logits, jax.random.fold_in(KEY, step))])
    return text[:, length:]


@pytest.mark.parametrize(
    ("name", "length", "steps", "context"),
    [("gpt", 3, 6, None), ("scan, rotary, grouped", 3, 20, 8), ("gpt", 12, 7, 8), ("gru", 5, 9, None)],
)
def test_texts_equal_those_of_a_loop_without_a_cache(name, length, steps, context):
    model, prompt = MODELS[name], texts(2, length, seed=3)
    params = drawn(model, spread=0.5)
    new = generated(model, params, prompt, KEY, steps=steps, context=context)
    assert new.dtype == jnp.int32
    expected = slowly(model, params, prompt, steps, context or length + steps - 1)
    np.testing.assert_array_equal(new, expected)
    assert len(np.unique(expected)) > 3  # no model that says one thing whatever it reads


def test_draws_depend_on_the_key_and_on_what_may_be_drawn():
    model = GPT(**(TINY | {"layers": 1}))
    params, prompt = drawn(model, spread=0.7), texts(3, 2)
    text = lambda key, **options: generated(model, params, prompt, key, steps=6, **options).tolist()
    assert text(KEY) == text(KEY)
    assert text(KEY) != text(jax.random.key(1))
    assert text(KEY, top_k=1) == text(jax.random.key(1), temperature=0.0)
    one = generate(model.apply, params, prompt, KEY, 1)
    assert one.tolist() == [row[:1] for row in text(KEY)]


def test_one_program_serves_every_temperature():
    logits = jnp.asarray([[0.0, 3.0, 2.0, -1.0]])
    run = jax.jit(partial(sample, top_k=2))
    draws = lambda heat: {int(run(logits, jax.random.key(seed), heat)[0]) for seed in range(30)}
    assert draws(0.0) == {1} and draws(1.0) == {1, 2} and draws(1e-3) == {1}
    assert run._cache_size() == 1


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.5, 3), (2.0, 99)])
def test_frequencies_follow_the_softmax_of_the_likeliest(temperature, top_k):
    logits = np.array([0.3, -1.0, 1.2, 0.9, -0.2], np.float32)
    kept = np.argsort(-logits)[:top_k]
    expected = np.zeros(5)
    expected[kept] = np.exp(logits[kept] / temperature)
    expected /= expected.sum()
    rows = jnp.broadcast_to(logits, (20_000, 5))
    draws = quick(partial(sample, temperature=temperature, top_k=top_k))(rows, KEY)
    drawn = np.bincount(draws, minlength=5) / 20_000
    assert (drawn[expected == 0] == 0).all()
    assert (np.abs(drawn - expected) <= 5 * np.sqrt(expected / 20_000)).all()


def test_of_equal_logits_the_first_are_kept():
    rows = jnp.zeros((200, 6))
    assert set(np.asarray(sample(rows, KEY, 1.0, top_k=2)).tolist()) == {0, 1}
    assert sample(rows, KEY, temperature=0.0).tolist() == [0] * 200


def test_what_cannot_be_generated_is_one_line():
    model = MODELS["gpt"]
    params = drawn(model, spread=0.7)
    run = partial(generate, model.apply, params)
    for words, prompt, options in (
        ("prompt: int32.2, 0. is not integers", jnp.zeros((2, 0), jnp.int32), {}),
        ("prompt: float32.2, 1. is not integers", jnp.zeros((2, 1)), {}),
        ("prompt: int32.3. is not integers", jnp.zeros(3, jnp.int32), {}),
        ("steps: 0 is below 1", texts(1, 1), {"steps": 0}),
        ("top_k: 0 is below 1", texts(1, 1), {"top_k": 0}),
        ("context: -1 is below 1", texts(1, 1), {"context": -1}),
        ("temperature: -0.5 is not >= 0", texts(1, 1), {"temperature": -0.5}),
        ("temperature: nan is not >= 0", texts(1, 1), {"temperature": float("nan")}),
        ("tokens: a sequence of 9 is longer than context=8", texts(1, 2), {"steps": 8}),
    ):
        with pytest.raises(ValueError, match=f"^{words}"):
            run(prompt, KEY, **({"steps": 2} | options))
