"""Rules of many leaves run side by side: what all of them ask for at once is selected by one program."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from sparsejax.packing import Packed, pack, unpack
from sparsejax.selection import Count, Request, Scores, answered, answered_together, devices


class Together(NamedTuple):
    """Asks for the `keep` best entries over all leaves.

    Attributes:
      requests: one a leaf; what they ask to keep is not read.
      keep: a Count.
    """

    requests: list[Request]
    keep: Count


# A rule in steps: it yields what it asks for and is sent the answer, in the same form; it returns the mask(s).
Steps = Generator[Any, Any, Any]


# The packed form of masks that were unpacked for the rules, by the id of the bool array.
Known = Mapping[int, Packed]


def run_each(steps: Sequence[Steps], finite: Sequence[Scores], known: Known) -> tuple[list[jax.Array], list[jax.Array]]:
    """The masks of rules, one a leaf, that run in lock-step, and whether each leaf is finite.

    Args:
      steps: rules; each yields a Request, or a list of them.
      finite: of each leaf, which of its units are finite (keys are bool).
      known: packed masks.
    """
    masks: list[Any] = [None] * len(steps)
    accept: list[Any] = [None] * len(steps)
    sent: dict[int, Any] = dict.fromkeys(range(len(steps)))
    first = True
    while sent:
        asked: dict[int, Any] = {}
        for i, answer in sent.items():
            try:
                asked[i] = steps[i].send(answer)
            except StopIteration as stop:
                masks[i] = stop.value
        if first:
            asked = {i: _first(item, finite[i]) for i, item in asked.items()}
        flat = [_lean(request, known) for item in asked.values() for request in _listed(item)]
        answers = iter(answered(flat))
        sent = {}
        for i, item in asked.items():
            own = [next(answers) for _ in _listed(item)]
            if first:
                accept[i] = _none(own[0].refused)
            sent[i] = own if isinstance(item, list) else own[0]
        first = False
    return masks, accept


def run_together(steps: Steps, finite: Sequence[Scores], known: Known) -> tuple[Any, list[jax.Array]]:
    """What one rule for all leaves returns, and whether each leaf is finite.

    The rule yields Together, or a list of Requests; what it yields first has one Request a leaf.
    """
    accept: list[jax.Array] = []
    answer = None
    while True:
        try:
            asked = steps.send(answer)
        except StopIteration as stop:
            return stop.value, accept
        requests = asked.requests if isinstance(asked, Together) else asked
        if not accept:
            requests = [request._replace(finite=ok) for request, ok in zip(requests, finite, strict=True)]
        lean = [_lean(request, known) for request in requests]
        answer = answered_together(lean, asked.keep) if isinstance(asked, Together) else answered(lean)
        accept = accept or [_none(chosen.refused) for chosen in answer]


def side_by_side(steps: Sequence[Steps]) -> Steps:
    """Rules, one a leaf, inside a rule for all leaves: what all of them ask for is asked for together.

    Example:
      >>> def halves(leaves):
      ...     return (yield from side_by_side([sparsejax.keep_best(leaf) for leaf in leaves]))
    """
    returned: list[Any] = [None] * len(steps)
    sent: dict[int, Any] = dict.fromkeys(range(len(steps)))
    while sent:
        asked: dict[int, Any] = {}
        for i, answer in sent.items():
            try:
                asked[i] = steps[i].send(answer)
            except StopIteration as stop:
                returned[i] = stop.value
        if not asked:
            break
        answers = iter((yield [request for item in asked.values() for request in _listed(item)]))
        sent = {
            i: [next(answers) for _ in item] if isinstance(item, list) else next(answers) for i, item in asked.items()
        }
    return returned


def _listed(item: Any) -> list[Request]:
    return item if isinstance(item, list) else [item]


def _first(item: Any, finite: Scores) -> Any:
    """The item with its first request told what is finite."""
    if isinstance(item, list):
        return [item[0]._replace(finite=finite), *item[1:]]
    return item._replace(finite=finite)


def _lean(request: Request, known: Known) -> Request:
    """The request with bool operands at one bit an entry: those of all leaves are stored while leaves are selected."""
    scores = request.scores
    if not devices.on_one_device():  # where the bytes might not be divisible by the devices
        return request

    def keys(*read):
        return scores.keys(*(unpack(x) if isinstance(x, Packed) else x for x in read))

    def lean(x):
        return known.get(id(x)) or pack(x) if isinstance(x, jax.Array) and x.dtype == bool else x

    operands = (lean(x) for x in scores.operands)
    return request._replace(scores=Scores(keys, tuple(operands)))


def _none(number: Count) -> jax.Array:
    return (number.hi | number.lo) == 0
