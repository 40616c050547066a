"""Selection inside small groups, as N:M asks for it: in one pass, by comparing a group's entries with one another.

The entries that are ranked together are taken apart into as many arrays as a group has entries. All comparisons are
then element-wise over the groups, and the compiler makes one loop of them, whose result is one word a group: bit i
says whether entry i is kept. The mask reads the words. Nothing is searched, and nothing crosses shards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.selection.counts import WORD, Count, as_count, total
from sparsejax.selection.keys import Scores, highest
from sparsejax.selection.request import Chosen, Request, kept, marked
from sparsejax.selection.slices import flat_index
from sparsejax.selection.stored import stored

LARGEST = 32  # entries of a group: bits of a word
PAIRED = 8  # up to so many every pair is compared; beyond, a sorting network needs less
READ_AT_ONCE = 8  # XLA stores what a loop would compute at more places than 15

Members = tuple[jax.Array, ...]  # the keys of each group's first entry, of each group's second, ...


def fits(request: Request) -> bool:
    """Whether a request can be answered here: small groups, ties by index, no ranked axis that is known to be cut."""
    example, axes = request.scores.example, request.axes
    size = math.prod(example.shape[axis] for axis in axes)
    spec = example.sharding.spec if getattr(example, "sharding", None) is not None else ()
    cut = any(spec[axis] is not None for axis in axes if axis < len(spec))
    return request.ties is None and 0 < size <= LARGEST and math.prod(example.shape) > size and not cut


def select_ranked(requests: Sequence[Request]) -> list[Chosen]:
    """The answers to requests, each leaf on its own."""
    words = stored(lambda: [_words(request) for request in requests], lambda: [_no_words(each) for each in requests])
    return [_chosen(request, word) for request, word in zip(requests, words, strict=True)]


def _dtype(bits: int) -> Any:
    """The smallest unsigned dtype with so many bits."""
    return next(jnp.dtype(f"uint{width}") for width in (8, 16, 32) if bits <= width)


def _words(request: Request) -> list[jax.Array]:
    """Words of what is kept; where it is asked for, with what is refused above it, or in a word of its own."""
    keys = _members(marked(request), request.axes)
    word = _kept_bits(keys, request.keep if isinstance(request.keep, int) else kept(request.keep, _candidates(keys)))
    if request.finite is None:
        return [word.astype(_dtype(len(keys)))]
    refused = _word([key == highest(key.dtype) for key in keys])
    if 2 * len(keys) > LARGEST:
        return [word, refused]
    return [(word | (refused << len(keys))).astype(_dtype(2 * len(keys)))]


def _no_words(request: Request) -> list[jax.Array]:
    """Zeros as `_words` gives words."""
    words = jax.eval_shape(lambda: _words(request))
    first = _members(request.scores, request.axes, 1)[0]
    return [jnp.zeros_like(first, word.dtype) for word in words]


def _chosen(request: Request, words: list[jax.Array]) -> Chosen:
    """The answer that the words hold."""
    word, dtype, shape = words[0], words[0].dtype, request.scores.example.shape
    size = math.prod(shape[axis] for axis in request.axes)
    bit = flat_index(shape, request.axes, jnp.uint32(0)).astype(dtype)
    mask = (word & (jnp.ones((), dtype) << bit)) != 0
    refused = jnp.zeros_like(word)
    if request.finite is not None:
        refused = words[1] if len(words) > 1 else word >> jnp.array(size, dtype)
    candidates = _candidates(_members(marked(request), request.axes))  # computed only where somebody reads it
    return Chosen(mask, candidates, _all(lax.population_count(refused), math.prod(shape)))


def _candidates(keys: Members) -> Count:
    return as_count(_number([key > 0 for key in keys]))


def _members(scores: Scores, axes: Sequence[int], number: int = LARGEST) -> Members:
    """The keys of each group's first entry, of each group's second, ... up to `number`; ranked axes have size 1."""
    shape = scores.example.shape
    places = itertools.product(*(range(shape[axis]) for axis in axes))
    members = []
    for i, place in enumerate(itertools.islice(places, number)):
        if i % READ_AT_ONCE == 0:
            # The barrier lets XLA compute the keys of some members apart from those of the others.
            keys = scores.keys(*(lax.optimization_barrier(scores.operands) if i else scores.operands))
        at = dict(zip(axes, place, strict=True))
        begin = [at.get(axis, 0) for axis in range(len(shape))]
        end = [at[axis] + 1 if axis in at else size for axis, size in enumerate(shape)]
        members.append(lax.slice(keys, begin, end))
    return tuple(members)


def _number(masks: Sequence[jax.Array]) -> jax.Array:
    """How many of the masks are True, entry by entry."""
    found = [mask.astype(jnp.uint32) for mask in masks]
    return sum(found[1:], found[0])


def _word(bits: Sequence[jax.Array]) -> jax.Array:
    """Bit i of the result is bits[i]."""
    word = bits[0].astype(jnp.uint32)
    for i, bit in enumerate(bits[1:], 1):
        word = word | (bit.astype(jnp.uint32) << i)
    return word


def _all(number: jax.Array, most: int) -> Count:
    """The sum of numbers that is at most `most`."""
    if most < WORD:
        return as_count(jnp.sum(number, dtype=jnp.uint32))
    found = total(as_count(jnp.sum(number, axis=-1, keepdims=True, dtype=jnp.uint32)), tuple(range(number.ndim)))
    return Count(found.hi.reshape(()), found.lo.reshape(()))


def _kept_bits(keys: Members, k: int | Count) -> jax.Array:
    """The words of the k largest of each group; of equal keys the first."""
    if isinstance(k, int):
        return _largest(keys) if k == 1 else _ranked(keys, jnp.uint32(min(k, len(keys))))
    return _ranked(keys, jnp.where(k.hi > 0, jnp.uint32(len(keys)), k.lo))


# What follows is traced once for leaves of one shape.


@jax.jit
def _largest(keys: Members) -> jax.Array:
    """The word of the largest key alone."""
    most = keys[0]
    for key in keys[1:]:
        most = jnp.maximum(most, key)
    equal = _word([key == most for key in keys])
    return equal & (~equal + 1)  # the lowest bit


@jax.jit
def _ranked(keys: Members, k: jax.Array) -> jax.Array:
    return (_by_pairs if len(keys) <= PAIRED else _by_cut)(keys, k)


def _by_pairs(keys: Members, k: jax.Array) -> jax.Array:
    """An entry is kept where fewer than k others beat it."""
    last = len(keys) - 1
    beaten = [jnp.full_like(key, last - i, jnp.uint32) for i, key in enumerate(keys)]  # by all that follow
    for j, i in itertools.combinations(reversed(range(len(keys))), 2):
        first = (keys[i] >= keys[j]).astype(jnp.uint32)  # i < j
        beaten[j], beaten[i] = beaten[j] + first, beaten[i] - first
    return _word([by < k for by in beaten])


def _by_cut(keys: Members, k: jax.Array) -> jax.Array:
    """What lies above the k-th largest key is kept, and of what equals it the first, as many as are then left."""
    ordered = _in_order(keys)
    cut = ordered[0]
    for place, key in enumerate(ordered[1:], 1):
        cut = jnp.where(k > place, key, cut)
    rest = k - _number([key > cut for key in keys])
    bits = []
    for key in keys:
        taken = (key == cut) & (rest > 0)
        rest = rest - taken.astype(jnp.uint32)
        bits.append((key > cut) | taken)
    return jnp.where(k > 0, _word(bits), 0)


def _in_order(keys: Sequence[jax.Array]) -> list[jax.Array]:
    """The keys in falling order, by Batcher's odd-even merge sort."""
    ordered, number = list(keys), len(keys)
    span = 1
    while span < number:
        step = span
        while step:
            for start in range(step % span, number - step, 2 * step):
                for low in range(start, min(start + step, number - step)):
                    if low // (2 * span) == (low + step) // (2 * span):
                        a, b = ordered[low], ordered[low + step]
                        ordered[low], ordered[low + step] = jnp.maximum(a, b), jnp.minimum(a, b)
            step //= 2
        span *= 2
    return ordered
