"""Ctrl-C, SIGTERM and a closed terminal as a request that is asked about, not an exception at any instant."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

_NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stops:
    """While the block runs, counts how often one of these signals came.

    A run in this process listens to SIGTERM itself while it trains: it saves and ends. Any other signal is passed on
    to it as that one; while it does not listen there is nothing to save, and the block ends by SystemExit.

    Args:
      here: whether the work is done in this process; a second signal then ends it by KeyboardInterrupt.

    Attributes:
      count: how often.
      signal: the number of the first one, 0 if none came.
    """

    def __init__(self, *, here: bool) -> None:
        self.here = here
        self.count = 0
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            self._before = {number: signal.signal(number, self._came) for number in _NUMBERS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self, number: int) -> None:
        """Counts a signal that came another way."""
        self.count += 1
        self.signal = self.signal or number

    def _came(self, number: int, frame: FrameType | None) -> None:
        self.note(number)
        listens = signal.getsignal(signal.SIGTERM) != self._came
        if self.here and not listens:
            os.write(2, b"\nstopped; the same command goes on from here\n")
            raise SystemExit(128 + number)
        if self.here and self.count > 1:
            raise KeyboardInterrupt
        if self.count == 1:  # not print: the signal may have come in the midst of one
            os.write(2, b"\nstopping: what runs is saved first (once more to stop at once)\n")
        if self.here:
            os.kill(os.getpid(), signal.SIGTERM)
