"""The command line: every foreseeable mistake is one line that names it, exit code 2, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import warnings

import pytest

from sparsejax import cli
from sparsejax.launch import config as configs
from sparsejax.launch import single, terminal
from sparsejax.launch.config import InputError

CONFIG = """
from sparsejax.training import default_config

def get_config(arg=""):
    config = default_config()
    config.method = "static"
    config.model_args = {"features": (16,)}
    config.epochs = 1
    config.seeds = 2
    if arg:
        config.dataset = arg
    return config
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with configs/tiny.py and a file that is no directory."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/tiny.py").write_text(CONFIG)
    (tmp_path / "configs/syntax.py").write_text("x = 1\ndef get_config(:\n")
    (tmp_path / "configs/crash.py").write_text("def get_config(arg=''):\n    return {}['epochs']\n")
    (tmp_path / "configs/dict.py").write_text("def get_config(arg=''):\n    return {'epochs': 3}\n")
    (tmp_path / "configs/empty.py").write_text("")
    (tmp_path / "configs/text.md").write_text("# no config\n")
    (tmp_path / "configs/broken.json").write_text("{")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*more: str, config: str = "configs/tiny.py", workdir: str = "run") -> list[str]:
    return ["train", "--config", config, "--workdir", workdir, *more]


def sweep(*more: str, config: str = "configs/tiny.py", out: str = "run") -> list[str]:
    return ["sweep", "--config", config, "--out", out, *more]


def procedure(name: str, *more: str, workdir: str = "run") -> list[str]:
    return ["procedure", name, "--config", "configs/tiny.py", "--workdir", workdir, *more]


MISTAKES = [
    # the command and its flags
    ([], ["no command", "train", "sweep"]),
    (["trian"], ["trian", "'train'"]),
    (["train"], ["--config", "required"]),
    (train("--workdri", "x"), ["--workdri", "'--workdir'"]),
    (sweep("--wokers=3"), ["--wokers", "'--workers'"]),
    (sweep("--workers", "two"), ["--workers", "'two'", ">= 0"]),
    (sweep("--workers=-1"), ["--workers", "'-1'", ">= 0"]),
    (train("extra"), ["extra"]),
    (train("--config.sparsity"), ["--config.sparsity", "value"]),
    (procedure("imps"), ["imps", "'imp'", "soup"]),
    (procedure("imp", "--args.round=3"), ["--args.round", "'rounds'"]),
    (procedure("imp", "--args.rounds"), ["--args.rounds", "value"]),
    (procedure("imp", "--args.rounds=0"), ["rounds", "0", ">= 1"]),
    (procedure("imp", "--args.controls=reinit,x"), ["controls", "'x'", "shuffled"]),
    (procedure("imp", "--args.rewind=99"), ["rewind", "99", "11 steps"]),
    (procedure("soup", "--args.retrain={'epocs': 2}"), ["epocs", "'epochs'"]),
    (procedure("spdf", "--config.method=dense"), ["method", "'dense'", "'static'"]),
    (procedure("imp", "--config.sparsty=0.9"), ["sparsty", "'sparsity'"]),
    (procedure("imp", "--config.dataset=mnist"), ["data_dir", "mnist"]),
    (procedure("imp", workdir="file"), ["workdir", "file", "directory"]),
    (train("--args.rounds=3"), ["--args.rounds"]),
    (["report"], ["PATH", "required"]),
    (["report", "no/such"], ["no/such", "does not exist"]),
    # the config file
    (train(config="configs/tinny.py"), ["configs/tinny.py", "'configs/tiny.py'"]),
    (train(config="nowhere/tiny.py"), ["nowhere/tiny.py", "does not exist"]),
    (train(config="configs/syntax.py"), ["configs/syntax.py:2", "def get_config(:"]),
    (train(config="configs/crash.py"), ["configs/crash.py:2", "KeyError", "epochs"]),
    (train(config="configs/dict.py"), ["configs/dict.py", "ConfigDict", "dict"]),
    (train(config="configs/empty.py"), ["configs/empty.py", "get_config"]),
    (train(config="configs/text.md"), ["configs/text.md", ".py"]),
    (train(config="configs/broken.json"), ["configs/broken.json", "JSON"]),
    (train(config="configs"), ["configs", "not a .py"]),
    (sweep(config="configs/tiny.py"), ["configs/tiny.py", "get_hyper"]),
    # fields
    (train("--config.sparsty=0.9"), ["sparsty", "'sparsity'"]),
    (train("--config.zzz=0.9"), ["zzz", "batch_size", "sparsity"]),
    (train("--config.sparsity=abc"), ["sparsity", "'abc'", "a number"]),
    (train("--config.sparsity=1.5"), ["sparsity", "1.5", "[0, 1)"]),
    (train("--config.sparsity=nan"), ["sparsity", "nan"]),
    (train("--config.epochs=2.5"), ["epochs", "'2.5'", "an integer"]),
    (train("--config.epochs", "many"), ["epochs", "'many'", "an integer"]),
    (train("--config.stop_on_nonfinite=maybe"), ["stop_on_nonfinite", "'maybe'", "true or false"]),
    (train("--config.seeds=x"), ["seeds", "'x'", "an integer or a list"]),
    (train("--config.epochs.more=2"), ["epochs.more", "epochs"]),
    (train("--config.model_args=3"), ["model_args", "group"]),
    (train("--config.modelargs.features=3"), ["modelargs", "'model_args'"]),
    (train("--config.model_args.featurs=(3,)"), ["model_args", "featurs", "'features'"]),
    (train("--config.model_args.features=a,b"), ["features", "'a,b'", "a list"]),
    (train("--config.method_args.drop_fracton=0.1"), ["drop_fracton", "'drop_fraction'"]),
    (train("--config.mesh.dta=2"), ["mesh", "'dta'", "'data'"]),
    (train("--config.log=tensorbord"), ["log", "tensorbord", "'tensorboard'"]),
    (train("--config.schedule_args.milestons=(1,)"), ["milestons", "'milestones'"]),
    (train("--config.betas=fast"), ["betas", "'fast'", "two numbers"]),
    # names
    (train("--config.method=rigel"), ["method", "'rigel'", "'rigl'", "gmp"]),
    (train("--config.dataset=digit"), ["dataset", "'digit'", "'digits'", "mnist"]),
    (train("--config.model=mlpp"), ["model", "'mlpp'", "'mlp'"]),
    (train("--config.optimizer=adamm"), ["optimizer", "'adamm'", "'adam"]),
    (train(config="configs/tiny.py:minst"), ["dataset", "'minst'", "'mnist'"]),
    # paths
    (train("--config.dataset=mnist"), ["data_dir", "mnist"]),
    (train("--config.dataset=mnist", "--config.data_dir=no/data"), ["data_dir", "no/data"]),
    (train("--config.dataset=mnist", "--config.data_dir=configs"), ["data_dir", "configs", "train-images"]),
    (train(workdir="file"), ["workdir", "file", "directory"]),
    (sweep(out="file"), ["--out", "file", "directory"]),
    (sweep(out="file/sub"), ["--out", "file", "directory"]),
    (sweep(out="configs"), ["--out", "configs", "not empty"]),
]


@pytest.mark.parametrize("arguments, words", MISTAKES, ids=[" ".join(m[0]) or "nothing" for m in MISTAKES])
def test_mistakes(here, capsys, arguments, words):
    before = sorted(str(path) for path in here.rglob("*"))
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("sparsejax: error: ")
    assert [word for word in words if word not in line] == []
    assert shown.out == ""
    assert sorted(str(path) for path in here.rglob("*")) == before


def test_a_sweep_reads_the_data_before_it_writes(here, capsys):
    (here / "configs/sweep.py").write_text(CONFIG + "def get_hyper(h):\n    return h.product({'seeds': [1, 2]})\n")
    assert cli.main(sweep("--config.dataset=mnist", "--config.data_dir=no/data", config="configs/sweep.py")) == 2
    assert "no/data" in capsys.readouterr().err
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    "text, field, value",
    [
        ("0.5", "sparsity", 0.5),
        ("1e-1", "sparsity", 0.1),
        ("0", "sparsity", 0.0),
        ("7", "epochs", 7),
        ("False", "stop_on_nonfinite", False),
        ("true", "stop_on_nonfinite", True),
        ("5", "seeds", 5),
        ("3,1", "seeds", (3, 1)),
        ("4,", "seeds", (4,)),
        ("[0, 2]", "seeds", (0, 2)),
        ("32,16", "model_args.features", (32, 16)),
        ("/a b=c", "data_dir", "/a b=c"),
        ("0.25", "method_args.drop_fraction", 0.25),
        ("nm(2, 4)", "method_args.pattern", "nm(2, 4)"),
        ("erk", "method_args.distribution", "erk"),
        ("-1", "mesh.data", -1),
        ("0.9,0.95", "betas", (0.9, 0.95)),
        ("0.95", "momentum", 0.95),
        ("tensorboard,wandb", "log", ["tensorboard", "wandb"]),
        ("['wandb']", "log", ["wandb"]),
        ("0.5,0.75", "schedule_args.milestones", (0.5, 0.75)),
    ],
)
def test_overrides_take_the_type_of_their_field(here, text, field, value):
    config = configs.load("configs/tiny.py").fresh()
    configs.apply(config, {field: text})
    for name in field.split("."):
        config = config[name]
    assert config == value
    assert type(config) is type(value)


def test_values_of_get_hyper_keep_their_type(here):
    config = configs.load("configs/tiny.py").fresh()
    configs.apply(config, {"sparsity": 0, "seeds": (1, 2), "epochs": 3})
    assert (config.sparsity, config.seeds, config.epochs) == (0.0, (1, 2), 3)
    for field, value in (("epochs", 2.0), ("epochs", True), ("method", 3), ("sparsity", None)):
        with pytest.raises(InputError, match=field):
            configs.apply(config, {field: value})


def test_train_shows_progress_and_the_accuracy_and_knows_when_it_is_done(here, capsys):
    assert cli.main(train("--config.sparsity=0.5")) == 0
    shown = capsys.readouterr()
    *steps, last = shown.out.splitlines()
    assert "accuracy" in last and "2 seeds" in last and last.endswith("; run")
    assert steps and all(line.startswith("step ") for line in steps)
    assert shown.err == ""
    result = json.loads((here / "run/result.json").read_text())
    assert f"{50 * sum(result['accuracy']):.2f} %" in last
    assert not list((here / "configs").glob("__pycache__"))

    assert cli.main(train("--config.sparsity=0.5")) == 0
    assert capsys.readouterr().out == f"done already: {last}\n"

    assert cli.main(train("--config.sparsity=0.6")) == 2  # another run in its place
    assert "sparsity" in capsys.readouterr().err

    assert cli.main(["report", "run"]) == 0
    assert (here / "run/curves.png").exists()
    assert cli.main(train(config="run/config.json", workdir="again")) == 0
    again = json.loads((here / "again/result.json").read_text())
    assert again["accuracy"] == result["accuracy"]


def test_a_loss_that_is_not_finite_is_one_line_and_its_own_code(here, monkeypatch, capsys):
    import sparsejax.training

    def diverge(config, workdir, *, on_progress):
        raise sparsejax.training.NonFiniteLoss("loss is nan at step 7 (seed 0)")

    monkeypatch.setattr(sparsejax.training, "train", diverge)
    assert cli.main(train()) == single.NON_FINITE
    (line,) = capsys.readouterr().err.splitlines()
    assert "nan at step 7" in line


def test_what_nobody_foresaw_is_one_line_and_a_traceback_in_a_file(here, monkeypatch, capsys):
    import sparsejax.training

    def crash(config, workdir, *, on_progress):
        workdir.mkdir()
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(sparsejax.training, "train", crash)
    assert cli.main(train()) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "sparsejax: error: RuntimeError: first line second line; traceback: run/log.txt"
    assert "Traceback" in (here / "run/log.txt").read_text()


def test_sigterm_saves_and_the_same_command_goes_on(here):
    """A real process, stopped at its first sign of progress; what it had is still there."""
    arguments = train("--config.epochs=40", "--config.chunk_steps=5", "--config.checkpoint_every_epochs=10")
    command = [sys.executable, "-m", "sparsejax.cli", *arguments]
    environment = {**os.environ, "XLA_FLAGS": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline().startswith("step ")
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate()
    assert process.returncode == 143
    assert "the same command goes on" in rest
    assert not (here / "run/result.json").exists()
    assert (here / "run/metrics.jsonl").read_text()


def test_list_has_one_line_for_each_name(capsys):
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert {
        "dense",
        "static",
        "one_shot",
        "gmp",
        "set",
        "rigl",
        "itop",
        "snfs",
        "dsr",
        "mest",
        "srigl",
        "granet",
        *("ste", "sr_ste", "dnw", "asp", "mdgf", "sdgf", "top_kast", "iss_p"),
        "ast",
        "bdwp",
        "cast",
        "digits",
        "mnist",
        "mlp",
    } <= set(names)
    assert all(len(line.split(None, 2)) == 3 for line in lines)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["sweep", "-h"], ["--version"]])
def test_help_and_version(arguments, capsys):
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "sparsejax" in shown
    if "sweep" in arguments:
        assert "--workers" in shown and "--config.field=value" in shown


def test_only_our_own_warnings_are_shown(capsys):
    with warnings.catch_warnings():
        terminal.quiet()
        warnings.warn_explicit("checkpoint 7\nis damaged", RuntimeWarning, "x.py", 1, "sparsejax.training.checkpoint")
        warnings.warn_explicit("sharding", UserWarning, "y.py", 1, "orbax.checkpoint")
    assert capsys.readouterr().err == "sparsejax: warning: checkpoint 7 is damaged\n"
