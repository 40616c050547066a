"""The fields of a Hugging Face config.json, checked as they are read."""

from pathlib import Path
from typing import Any


class Fields:
    """The values of a config.json.

    Args:
      file: its path, for messages.
      values: as read.
    """

    def __init__(self, file: Path, values: dict[str, Any]):
        self.file, self.values = file, values

    def get(self, field: str, default: Any, allowed: tuple[Any, ...] = ()) -> Any:
        """The value of a field, of the default's type, or the default where the file has none.

        Raises:
          ValueError: it has another type, is a number below 0, or is not among the allowed values.
        """
        value = self.values.get(field, default)
        kind = (int, float) if isinstance(default, float) else type(default)
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong or (isinstance(value, int | float) and value < 0):
            name = "a number >= 0" if isinstance(default, float) else f"a value like {default!r}"
            raise ValueError(f"{self.file}: {field}: {value!r} is not {name}")
        if allowed and value not in allowed:
            raise ValueError(f"{self.file}: {field}: {value!r} is not {' or '.join(map(repr, allowed))}")
        return value

    def size(self, field: str, default: int) -> int:
        """A whole number of at least 1."""
        value = self.get(field, default)
        if value < 1:
            raise ValueError(f"{self.file}: {field}: {value!r} is not at least 1")
        return value
