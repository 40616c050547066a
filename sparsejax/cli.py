"""The command line: flags only; what the commands do is in launch/ and report/.

    sparsejax train  --config FILE[:arg] --workdir DIR [--profile] [--config.field=value ...]
    sparsejax sweep  --config FILE[:arg] --out DIR [--workers N] [--profile] [--config.field=value ...]
    sparsejax procedure NAME --config FILE[:arg] --workdir DIR [--args.name=value ...] [--config.field=value ...]
    sparsejax sample --workdir DIR --prompt TEXT
    sparsejax predict --workdir DIR FILE...
    sparsejax list
    sparsejax report PATH

Exit codes: 0; 1 a trial failed or something unforeseen happened; 2 bad input, and nothing was written; 3 a
loss that is not finite; 130 and 143 after Ctrl-C and SIGTERM, with everything saved.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from sparsejax.launch.config import InputError, nearest
from sparsejax.launch.terminal import complain, quiet, report_crash

_FIELDS = "--config.field=value sets a field of the config, as in --config.method_args.drop_fraction=0.5"

_ARGS = f"--args.name=value sets an argument of the procedure, as in --args.rounds=10; {_FIELDS}"


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} ({self.prog} --help shows the options)")


def _parsers() -> tuple[_Parser, dict[str, tuple[_Parser, list[str]]]]:
    """The parser, and for each command its own parser and its flags."""
    parser = _Parser(prog="sparsejax", description="Sparse training in JAX.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"sparsejax {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    out: dict[str, tuple[_Parser, list[str]]] = {}

    def command(name: str, text: str, epilog: str = "") -> _Parser:
        sub = commands.add_parser(name, help=text, description=text, epilog=epilog, allow_abbrev=False)
        out[name] = (sub, ["--help"])
        return sub

    def flag(sub: _Parser, *names: str, **options) -> None:
        out[sub.prog.split()[-1]][1].extend(sub.add_argument(*names, **options).option_strings)

    config = {
        "required": True,
        "metavar": "FILE[:arg]",
        "help": "a config file; arg goes to its get_config(arg)",
    }
    train = command("train", "train one run, or go on with it", _FIELDS)
    flag(train, "--config", **config)
    flag(train, "--workdir", required=True, type=Path, metavar="DIR", help="the run's directory")
    sweep = command("sweep", "run the trials of the config's get_hyper(h), or go on with them", _FIELDS)
    flag(sweep, "--config", **config)
    flag(sweep, "--out", required=True, type=Path, metavar="DIR", help="the sweep's directory")
    workers = "local processes at a time, each with its share of the cores or its own GPU; 0: in turn in this"
    flag(
        sweep,
        "--workers",
        type=_count,
        default=1,
        metavar="N",
        help=f"{workers} process, sharing compiled programs (default 1)",
    )
    for sub in (train, sweep):
        flag(sub, "--profile", action="store_true", help="show where the time went, and write it to profile.json")
    procedure = command("procedure", "run rounds of trainings (lottery tickets, soups, ...), or go on with them", _ARGS)
    procedure.add_argument("name", metavar="NAME", help="of the procedure; sparsejax list shows them")
    flag(procedure, "--config", **config)
    flag(procedure, "--workdir", required=True, type=Path, metavar="DIR", help="the procedure's directory")
    sample = command("sample", "go on with a text, by the language model of a run")
    flag(sample, "--workdir", required=True, type=Path, metavar="DIR", help="the run's directory")
    flag(sample, "--prompt", default="\n", metavar="TEXT", help="the text to go on from (default: a new line)")
    flag(sample, "--tokens", type=_positive, default=200, metavar="N", help="how many tokens to add (default 200)")
    flag(sample, "--temperature", type=_amount, default=1.0, metavar="T", help="0: the likeliest token (default 1)")
    flag(sample, "--top-k", type=_count, default=0, metavar="K", help="draw from the K likeliest (default 0: from all)")
    flag(sample, "--seed", type=_count, default=0, metavar="N", help="of the draws (default 0)")
    flag(sample, "--trained-seed", type=_count, metavar="N", help="which seed of the run (default: its first)")
    predict = command("predict", "say the class of images, by the classifier of a run (the mean over its seeds)")
    flag(predict, "--workdir", required=True, type=Path, metavar="DIR", help="the run's directory")
    predict.add_argument("files", type=Path, nargs="+", metavar="FILE", help="an image, or .npy of the data's shape")
    command("list", "name the methods, procedures, data sets and models")
    report = command("report", "rebuild table and plots of a run, a sweep or speed results from what is on disk")
    report.add_argument("path", type=Path, metavar="PATH", help="a run, a sweep, or results of experiments/speed")
    return parser, out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; errors are one line on stderr."""
    directory = None
    try:
        arguments, overrides, options = _parse(list(sys.argv[1:] if argv is None else argv))
        quiet()
        directory = _own_directory(arguments)
        return _run(arguments, overrides, options, Console(highlight=False))
    except InputError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except Exception as error:
        report_crash(error, directory)
        return 1


def _own_directory(arguments: argparse.Namespace) -> Path | None:
    """Where a command writes, and so where its log belongs."""
    if arguments.command in ("sample", "predict"):  # these only read the run
        return None
    return getattr(arguments, "workdir", None) or getattr(arguments, "out", None)


def _parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str], dict[str, str]]:
    """The flags, the `--config.field` overrides as field -> text, and the `--args.name`; raises InputError."""
    parser, commands = _parsers()
    first = next((word for word in argv if not word.startswith("-")), None)
    if first is None and not {"-h", "--help", "--version"} & set(argv):
        raise InputError(f"no command; one of {', '.join(commands)} (sparsejax --help tells more)")
    if first is not None and first not in commands:
        raise InputError(f"{first}: no such command{nearest(first, commands)} one of {', '.join(commands)}")
    overrides: dict[str, str] = {}
    options: dict[str, str] = {}
    if first in ("train", "sweep", "procedure"):
        argv, overrides = _split_overrides(argv, "--config.", "sparsity=0.9")
    if first == "procedure":
        argv, options = _split_overrides(argv, "--args.", "rounds=10")
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        near = nearest(
            unknown[0].partition("=")[0],
            [*commands[arguments.command][1], *([] if not overrides else ["--config."])],
        )
        raise InputError(f"{unknown[0]}: no such argument of {arguments.command}{near}")
    return arguments, overrides, options


def _split_overrides(argv: list[str], prefix: str, example: str) -> tuple[list[str], dict[str, str]]:
    rest: list[str] = []
    overrides: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith(prefix):
            rest.append(word)
            continue
        field, equals, text = word.removeprefix(prefix).partition("=")
        value = text if equals else next(words, None)
        if not field or value is None or (not equals and value.startswith("--")):
            raise InputError(f"{word}: needs a field and a value, as in {prefix}{example}")
        overrides[field] = value
    return rest, overrides


def _run(arguments: argparse.Namespace, overrides: dict[str, str], options: dict[str, str], console: Console) -> int:
    # each command imports what it needs: help, and a sweep that is done, answer without jax
    if arguments.command == "train":
        from sparsejax.launch.single import run_train

        return run_train(arguments.config, overrides, arguments.workdir, console, arguments.profile)
    if arguments.command == "sweep":
        from sparsejax.launch.sweep import run_sweep

        return run_sweep(arguments.config, overrides, arguments.out, arguments.workers, console, arguments.profile)
    if arguments.command == "procedure":
        from sparsejax.launch.procedure import run_procedure

        return run_procedure(arguments.name, arguments.config, overrides, options, arguments.workdir, console)
    if arguments.command == "sample":
        from sparsejax.launch.sample import Wanted, run_sample

        wanted = Wanted(**{field: getattr(arguments, field) for field in Wanted._fields})
        return run_sample(arguments.workdir, wanted, console)
    if arguments.command == "predict":
        from sparsejax.launch.predict import run_predict

        return run_predict(arguments.workdir, arguments.files, console)
    if arguments.command == "report":
        from sparsejax.report.write import report

        report(arguments.path, console)
        return 0
    from sparsejax.launch.names import known_names

    known = known_names()
    width = max(len(name) for name, _, _ in known)
    for name, kind, line in known:
        console.print(f"{name:<{width}} {kind:<9} {line}", markup=False, soft_wrap=True)
    return 0


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 0")
    return value


def _positive(text: str) -> int:
    value = _count(text)
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1")
    return value


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number >= 0")
    return value


def _version() -> str:
    try:
        return importlib.metadata.version("sparsejax")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
