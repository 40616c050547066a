"""Selection as on a single device, which is what most tests are about, or as where leaves may be sharded."""

import contextlib

from sparsejax.selection import devices

alone = [True]
devices.on_one_device = lambda: alone[-1]


@contextlib.contextmanager
def many_devices():
    """Inside, what is traced may be sharded, although the test process has its eight devices always."""
    alone.append(False)
    try:
        yield
    finally:
        alone.pop()
