"""What sparsity adds to an optimizer step: every algorithm against bare optax AdamW, interleaved in one process.

    make bench
    python experiments/speed/optimizer.py [--tree NAMES] [--only CASES] [--rounds N] [--large] [--peer DIR] [--out FILE]

A full step is `tx.update` and `optax.apply_updates`, jitted, params and state donated. README.md says how to read it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from rich.console import Console

from cases import CASES, Case
from groups import Settings, measured
from peer import COMMAND, peer_cases
from program import no_compilation_cache
from record import default_path, heading
from sparsejax.files import write_json
from sparsejax.report.speed import show_tables
from timing import ENOUGH
from trees import TREES, Tree

MEMORY = 9e9  # bytes of params, moments, masks and gradients at a time
MOST_ROUNDS = 39  # updates of a ramp that are left after the first one measured


class Parser(argparse.ArgumentParser):
    """argparse, with its errors as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def names_among(known: Sequence[str]) -> Callable[[str], list[str]]:
    """The type of a flag that takes some of the known names, with commas between."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


def rounds(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if not 1 <= value <= MOST_ROUNDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to {MOST_ROUNDS}")
    return value


def out_file(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".json" or path.is_dir() or not os.access(_existing(path.absolute().parent), os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a .json file that can be written")
    return path


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="optimizer.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--tree", type=names_among(list(TREES)), metavar="NAMES", help=", ".join(TREES))
    parser.add_argument("--only", type=names_among([c.name for c in CASES]), metavar="CASES", help="some cases only")
    parser.add_argument("--rounds", type=rounds, default=ENOUGH, metavar="N", help=f"default {ENOUGH}")
    parser.add_argument("--large", action="store_true", help="the trees too that need 16 GB and many minutes")
    parser.add_argument("--peer", type=Path, metavar="DIR", help="a JaxPruner checkout, for the same rows of it")
    parser.add_argument("--out", type=out_file, metavar="FILE", help="default: results/<machine>-<date>.json")
    arguments = parser.parse_args(argv)
    arguments.peers = []
    if arguments.peer is not None:
        try:
            arguments.peers, patches = peer_cases(arguments.peer)
        except ValueError as error:
            parser.error(str(error))
        say(f"JaxPruner, patched in this process only: {'; '.join(patches) or 'nothing'}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints the tables, writes the file; 1 where a case failed."""
    arguments = parsed(argv)
    console = Console(highlight=False)
    results = heading(command(arguments), arguments.rounds)
    complete = arguments.tree is None and arguments.only is None
    out = arguments.out or default_path(results, complete)
    out.parent.mkdir(parents=True, exist_ok=True)
    chosen = [case for case in CASES if arguments.only is None or case.name in arguments.only]
    chosen += [case for case in arguments.peers if arguments.only is None or case.name.split()[-1] in arguments.only]
    wanted = arguments.tree or [name for name, tree in TREES.items() if arguments.large or not tree.large]
    settings = Settings(arguments.rounds, MEMORY, jax.default_backend(), say)
    with no_compilation_cache():
        for name in wanted:
            add_tree(results, TREES[name], chosen, settings, out)
    show_tables(results, console)
    print(f"written: {out}")
    return int(any(entry["failed"] for entry in results["left_out"]))


def add_tree(results: dict[str, Any], tree: Tree, chosen: Sequence[Case], settings: Settings, out: Path) -> None:
    """Measures one tree, and writes the file after each of its groups, so that a kill loses one group at most."""
    results["trees"].append(tree.facts())
    for found in measured(tree, chosen, settings):
        results["rows"] += found.rows
        results["left_out"] += found.left_out
        write_json(out, results)


def say(text: str) -> None:
    """Prints one line at once, also into a pipe."""
    print(text, flush=True)


def command(arguments: argparse.Namespace) -> str:
    """The command again, without this machine's paths."""
    words = ["python experiments/speed/optimizer.py"]
    for flag in ("tree", "only"):
        if getattr(arguments, flag):
            words.append(f"--{flag} {','.join(getattr(arguments, flag))}")
    words += [f"--rounds {arguments.rounds}"] + ["--large"] * arguments.large + [COMMAND] * bool(arguments.peers)
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
