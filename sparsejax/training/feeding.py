"""Where the batches of a chunk come from.

A feed is what the steps of one chunk read. Of data in memory it is all of them on the device and the order of the
epoch, for every step the same. Of data that are streamed each step has a feed of its own, its batch, which the host
draws and puts on the devices while these are busy with the steps before. A program reads either by `taken`; nothing
else knows what is in one.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax

from sparsejax.data.stream import side_by_side
from sparsejax.training.errors import refusing
from sparsejax.training.placement import Placement
from sparsejax.training.profile import span
from sparsejax.training.tasks import Examples, Streamed, Task

AHEAD = 2  # steps that the host is ahead of the device, where each is a dispatch of its own


class Feed(NamedTuple):
    """A data set on the device, and in which order this epoch takes it.

    Attributes:
      arrays: the whole set; every seed reads it.
      order: int32 (S, N): indices of examples, or where windows start; batch after batch.
    """

    arrays: Any
    order: jax.Array

    def taken(self, task: Task, place: jax.Array, batch: int, split: Callable[[Any], Any]) -> tuple[Any, Any]:
        """The batch of every seed at the place-th step of the epoch: (x, y) with leading axes (S, B).

        `split` says how a batch lies on the devices; the gather then reads on each of them what is its own.
        """
        seeds = self.order.shape[0]
        index_SxB = split(lax.dynamic_slice(self.order, (0, place * batch), (seeds, batch)))
        return split(task.gather(self.arrays, index_SxB))

    @property
    def pool(self) -> tuple[Any, Any]:
        """What further examples are drawn from: the whole set, and which places of it each seed takes, (S, N)."""
        return self.arrays, self.order

    def each(self, steps: int) -> Iterator["Feed"]:
        """What each of the chunk's steps reads."""
        return itertools.repeat(self, steps)


class Drawn(NamedTuple):
    """The batch of one step, with leading axes (S, B)."""

    x: jax.Array
    y: jax.Array

    def taken(self, task: Task, place: jax.Array, batch: int, split: Callable[[Any], Any]) -> tuple[Any, Any]:
        """As of `Feed`."""
        del task, place, batch
        return split((self.x, self.y))

    @property
    def pool(self) -> tuple[Any, Any]:
        """Nothing but the batch is there."""
        return (), ()


class Chunk:
    """The batches of a chunk's steps, drawn when their time has come."""

    def __init__(self, draw: Callable[[], Drawn], meanwhile: Callable[[], None]):
        self._draw, self._meanwhile = draw, meanwhile

    def each(self, steps: int) -> Iterator[Drawn]:
        """What each of the chunk's steps reads."""
        for done in range(steps):
            if done == AHEAD:  # the device has work, and the chunk before is over
                self._meanwhile()
            yield self._draw()


def _nothing() -> None:
    return None


def feeds_of(
    examples: Examples | Streamed, seeds: Sequence[int], batch: int, place: Placement
) -> "MemoryFeeds | StreamFeeds":
    """(step, stop) -> the feed of a chunk, of data of either kind.

    Args:
      examples: the data.
      seeds: of the trial.
      batch: examples of a seed in a step.
      place: where the program wants its arrays.

    Raises:
      ConfigError: there is not enough for one batch.
    """
    if isinstance(examples, Streamed):
        return StreamFeeds(examples, seeds, batch, place)
    return MemoryFeeds(examples, seeds, place)


class MemoryFeeds:
    """The feeds of a trial whose data are on the device."""

    skipped = 0

    def __init__(self, examples: Examples, seeds: Sequence[int], place: Placement):
        self._examples, self._seeds, self._place = examples, list(seeds), place
        self._last: dict[int, Feed] = {}

    def __call__(self, step: int, stop: int, meanwhile: Callable[[], None] = _nothing) -> Feed:
        """The feed of the steps from `step` to before `stop`, which lie in one epoch."""
        del stop, meanwhile
        epoch = step // self._examples.epoch_steps
        if epoch not in self._last:
            self._last.clear()
            order = self._place.put(self._examples.draw(self._seeds, epoch))
            self._last[epoch] = Feed(self._examples.arrays, order)
        return self._last[epoch]

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the data beyond the step."""
        return {}

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes to a step, with what `state()` gave there."""

    def close(self) -> None:
        """Ends what makes batches ahead."""


class StreamFeeds:
    """The feeds of a trial whose data are streamed: each seed has its own order; the number of a batch is the step.

    Attributes:
      skipped: damaged examples that were met in the batches so far, those of all seeds together.
    """

    def __init__(self, examples: Streamed, seeds: Sequence[int], batch: int, place: Placement):
        self._name, self._place = repr(examples.name), place
        with refusing(self._name):
            self._batches = side_by_side([examples.stream.train(batch, seed) for seed in seeds])

    @property
    def skipped(self) -> int:
        return self._batches.skipped

    def __call__(self, step: int, stop: int, meanwhile: Callable[[], None] = _nothing) -> Chunk:
        """The feed of the steps from `step` on; `meanwhile` is called when their first ones are under way."""
        del stop
        if self._batches.position != step:
            self._batches.restore(self._batches.state() | {"position": step})
        return Chunk(self._draw, meanwhile)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the data beyond the step."""
        return self._batches.state()

    def restore(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes to a step, with what `state()` gave there.

        Raises:
          ConfigError: the data are not those that it was given with.
        """
        with refusing(f"{self._name}: it has changed since step {step}, where this run goes on"):
            self._batches.restore(dict(state) | {"position": step})

    def close(self) -> None:
        """Ends what makes batches ahead."""
        self._batches.close()

    def _draw(self) -> Drawn:
        with span("data"):
            with refusing(self._name):
                batch = next(self._batches)
            return Drawn(*self._place.put_split(batch))
