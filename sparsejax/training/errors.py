"""What can end a training run, apart from its end."""

import contextlib
from collections.abc import Iterator


class ConfigError(ValueError):
    """The run cannot start as asked: one line that names the field, the value and what is allowed (exit code 2)."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))  # errors that are quoted in it may have several lines


@contextlib.contextmanager
def refusing(dataset: str) -> Iterator[None]:
    """Inside, a ValueError of reading data is a ConfigError that names the data set."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"dataset {dataset}: {error}") from error


class NonFiniteLoss(ArithmeticError):
    """A loss or the parameters stopped being finite; the message names the step, the seed and the value."""


class Preempted(SystemExit):
    """SIGTERM came: the state is saved, and the process exits with 143, as a shell reports that signal."""

    def __init__(self, step: int):
        super().__init__(143)
        self.step = step
