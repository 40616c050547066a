"""Where the batches of a chunk come from.

A feed is what the steps of one chunk read: made on the host while the device is busy with the chunk before, and read
inside the chunk, step by step, by `taken`. Here it is all data on the device and the order of the epoch. A set that is
streamed makes another feed, of the chunk's own batches, and another `taken`; nothing else knows what is in one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax

from sparsejax.training.tasks import Examples, Task


class Feed(NamedTuple):
    """A data set on the device, and in which order this epoch takes it.

    Attributes:
      arrays: the whole set; every seed reads it.
      order: int32 (S, N): indices of examples, or where windows start; batch after batch.
    """

    arrays: Any
    order: jax.Array


def feeder(examples: Examples, seeds: Sequence[int], put: Callable[[Any], Any]) -> Callable[[int, int], Feed]:
    """(step, stop) -> the feed of the steps from `step` to before `stop`, which lie in one epoch.

    Args:
      examples: the data.
      seeds: of the trial.
      put: puts arrays where the program wants them.
    """
    last: dict[int, Feed] = {}

    def feed(step: int, stop: int) -> Feed:
        del stop
        epoch = step // examples.epoch_steps
        if epoch not in last:
            last.clear()
            last[epoch] = Feed(examples.arrays, put(examples.draw(list(seeds), epoch)))
        return last[epoch]

    return feed


def taken(task: Task, feed: Feed, place: jax.Array, batch: int, split: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The batch of every seed at the place-th step of the epoch: (x, y) with leading axes (S, B).

    `split` says how a batch lies on the devices; the gather then reads on each of them what is its own.
    """
    seeds = feed.order.shape[0]
    index_SxB = split(lax.dynamic_slice(feed.order, (0, place * batch), (seeds, batch)))
    return split(task.gather(feed.arrays, index_SxB))
