"""What reaches the terminal: our own lines and warnings, not the libraries' log; tracebacks go to a file."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

from rich.console import Console

from sparsejax.launch.local import PROGRESS_FD


def quiet() -> None:
    """Silences what absl, jax and orbax log below an error, and shows our own warnings as one line each.

    To be called before jax is imported. `python -W ...` keeps its say over warnings.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    for name in ("", "jax", "orbax", "flax", "matplotlib"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.showwarning = _show_warning
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"sparsejax(\.|$)", category=UserWarning)
        warnings.filterwarnings("default", module=r"sparsejax(\.|$)", category=RuntimeWarning)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    del filename, lineno, line
    print(f"sparsejax: warning: {one_line(message)}", file=file or sys.stderr)


def say(console: Console, text: str) -> None:
    """Prints one line as it is: brackets are no markup, and a long path is not broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def one_line(error: object) -> str:
    """The text of an error on one line; its type's name where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def complain(text: str) -> None:
    """Prints `sparsejax: error: ...` on stderr."""
    print(f"sparsejax: error: {one_line(text)}", file=sys.stderr)


def report_crash(error: Exception, directory: Path | None) -> None:
    """One line for an error that nobody foresaw; the traceback goes to log.txt or a temporary file.

    In a sweep's process stderr is the log already.
    """
    what = f"{type(error).__name__}: {one_line(error)}"
    if PROGRESS_FD in os.environ:
        traceback.print_exception(error)
        complain(what)
        return
    if directory is not None and directory.is_dir():
        log = directory / "log.txt"
    else:
        handle, name = tempfile.mkstemp(prefix="sparsejax-", suffix=".log")
        os.close(handle)
        log = Path(name)
    with open(log, "a", encoding="utf-8") as file:
        file.writelines(traceback.format_exception(error))
    complain(f"{what}; traceback: {log}")
