"""Data that does not fit on the device: batches made ahead of their use, from a position that a checkpoint holds.

Every batch is a pure function of its number, so the position of an iterator is one integer: what follows after a
restore does not depend on how many workers there are, nor on what they had made ahead when the process ended.
"""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from sparsejax.data.checks import check_integer
from sparsejax.data.source import PerChannel

# A batch on the host and the number of damaged examples that were met in it; or, as text, why there is none: an
# exception would lose its class and its one line on its way out of a worker process.
Made = tuple[tuple[Any, ...], int] | str


class Stream(NamedTuple):
    """A data set that is read batch by batch; B examples in a batch.

    Attributes:
      train: (batch_size, seed) -> `Batches` without end of (x (B, *shape), y); an epoch is train_size // batch_size
        of them, each example at most once in it.
      test: (batch_size) -> `Batches` of (x, y, real) over all test examples once; real is False where an entry only
        fills up.
      classes: number of classes, of a text its vocabulary.
      example: shape and dtype of one example, without a batch axis.
      offset: pixel value that becomes 0.
      scale: a model sees (pixel - offset) * scale, see `standardized`.
      train_size: training examples.
      test_size: test examples, of a text the characters or tokens that are predicted.
      skipped: what was found damaged and left out before the first batch; `Batches.skipped` counts on.
      view: of images: the path of a file -> it as evaluation sees it, uint8 (*shape).
    """

    train: Callable[[int, int], "Batches"]
    test: Callable[[int], "Batches"]
    classes: int
    example: jax.ShapeDtypeStruct
    offset: PerChannel
    scale: PerChannel
    train_size: int
    test_size: int
    skipped: int = 0
    view: Callable[[str], np.ndarray] | None = None

    @property
    def streamed(self) -> bool:
        return True


class Batches:
    """An iterator over batches that are made ahead by threads or processes, with a position that can be kept.

    Attributes:
      position: the number of batches taken so far.
      skipped: damaged examples met in these.
    """

    def __init__(
        self,
        make: Callable[[int], Made],
        *,
        named: dict[str, Any],
        count: int | None = None,
        workers: int = 0,
        threads: int = 1,
    ):
        """An iterator at position 0.

        Args:
          make: number of a batch -> the batch; picklable where workers > 0, and called in any order.
          named: what the batches depend on, as JSON has it; a state from an iterator with another `named` is refused.
          count: number of batches; None: no end.
          workers: processes; 0: threads of this process.
          threads: threads, of this process or of each worker; 0: nothing is made ahead.
        """
        self._make, self._named, self._count = make, dict(named), count
        self._workers, self._threads = workers, threads
        self._source: Any = None
        self.position, self.skipped = 0, 0

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return self

    def __next__(self) -> tuple[Any, ...]:
        """The next batch; ValueError, one line that names the file, where it cannot be made."""
        if self._count is not None and self.position >= self._count:
            self.close()
            raise StopIteration
        if self._source is None:
            self._source = _ahead(self._make, self.position, self._count, self._workers, self._threads)
        made = next(self._source)
        if isinstance(made, str):
            self.close()
            raise ValueError(made)
        batch, skipped = made
        if self._workers:  # out of the memory that it came in, which grain takes back
            batch = tuple(np.array(part) for part in batch)
        self.position += 1
        self.skipped += skipped
        return batch

    def state(self) -> dict[str, Any]:
        """The position as a small dict, for a checkpoint or for JSON."""
        return {"position": self.position, "skipped": self.skipped, "named": dict(self._named)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a position: the next batches are those that followed when `state()` was taken.

        Raises:
          ValueError: if the state is not one, or belongs to other data, another batch size or another seed.
        """
        try:
            position, skipped, named = state["position"], state["skipped"], dict(state["named"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"state: {state!r} is not a position in a stream of batches") from error
        check_integer("state.position", position, 0, 2**62 if self._count is None else self._count)
        check_integer("state.skipped", skipped, 0, 2**62)
        for name in sorted(named.keys() | self._named.keys()):
            if named.get(name) != self._named.get(name):
                raise ValueError(f"state: {name} was {named.get(name)} there and is {self._named.get(name)} here")
        self.close()
        self.position, self.skipped = position, skipped

    def close(self) -> None:
        """Ends the threads and processes; the next batch would start new ones."""
        source, self._source = self._source, None
        if source is not None:
            source.close()
            del source
            if self._workers:
                gc.collect()  # grain's iterators are cycles, which hold shared memory


def side_by_side(each: Sequence[Batches]) -> Batches:
    """The batches of several iterators, as of several seeds, stacked along a new first axis by one pool of workers.

    Args:
      each: at position 0, of one kind: with the same count, workers and threads.

    Example:
      >>> one, two = (Batches(lambda n, k=k: ((np.full(2, 10 * k + n),), 0), named={"seed": k}) for k in (1, 2))
      >>> both = side_by_side([one, two])
      >>> next(both)[0].tolist(), next(both)[0].tolist(), both.state()["named"]
      ([[10, 10], [20, 20]], [[11, 11], [21, 21]], {'seed': [1, 2]})
      >>> both.close()
    """
    first = each[0]
    make = _Stacked([batches._make for batches in each])
    named = {name: [batches._named[name] for batches in each] for name in first._named}
    named = {name: values[0] if values.count(values[0]) == len(values) else values for name, values in named.items()}
    return Batches(make, named=named, count=first._count, workers=first._workers, threads=first._threads)


@dataclass(frozen=True)
class _Stacked:
    """Number of a batch -> the batches of this number, stacked."""

    makes: Sequence[Callable[[int], Made]]

    def __call__(self, number: int) -> Made:
        batches, skipped = [], 0
        for make in self.makes:
            made = make(number)
            if isinstance(made, str):
                return made
            batches.append(made[0])
            skipped += made[1]
        return tuple(np.stack(parts) for parts in zip(*batches, strict=True)), skipped


def _ahead(make: Callable[[int], Made], first: int, count: int | None, workers: int, threads: int) -> Any:
    """A grain iterator over make(first), make(first + 1), ..., with two batches ready for each that makes them."""
    import grain  # here: it takes a while to import, and data in memory does not need it
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads its settings from absl's flags, which only absl.app parses
    numbers = grain.MapDataset.range(first, 2**62 if count is None else count)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads if workers else 2 * threads)
    batches = numbers.map(make).to_iter_dataset(options)
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(options, worker_init_fn=_begin_worker)
    return iter(batches)


def _begin_worker(*_: int) -> None:
    """A worker lives as long as the process that it works for, which is asked to end by Ctrl-C or SIGTERM, not it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the other still needs batches up to where it saves
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
