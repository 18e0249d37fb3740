"""train.py from the command line's end: what it writes, what it refuses, and that a stopped run goes on bit for bit."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import train
from minigan import GAN, checkpoint, load, metrics, parallel, plots, recipes, runs

SAMPLES, ANIMATE = plots.samples, plots.animate
SCRIPT = Path(train.__file__).resolve()
RNG = np.random.default_rng(0)
TINY = [
    "--generator", "8, relu", "--discriminator", "8, leaky_relu", "--latent-dim", "4", "--batch-size", "8",
    "--steps", "6", "--report-every", "2", "--save-every", "6", "--quiet",
]  # fmt: skip
FILES = ["checkpoint.npz", "config.json", "curves.png", "metrics.csv", "samples", "samples.png", "scores.json"]


def run(*args):
    """The exit code of train.py with these arguments after those of a tiny, quiet run."""
    return bare(*TINY, *args)


def bare(*args):
    """The exit code of train.py with these arguments alone."""
    try:
        return train.main([str(arg) for arg in args])
    except SystemExit as stop:  # argparse
        return stop.code


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fast(here, monkeypatch):
    """An empty working folder, and neither pictures nor scores, which take most of the time of a tiny run.

    In place of a picture is the content of what it shows.
    """
    leave_out_the_slow_parts(monkeypatch)
    return here


def leave_out_the_slow_parts(monkeypatch):
    def samples(path, data, fake, probability, title, labels):
        numbers(path, fake, probability(fake))

    def animate(path, data, frames, steps, surfaces, labels):
        numbers(path, *frames, *(surfaces or []), steps)

    def curves(path, log):
        numbers(path, *log.values())

    def numbers(path, *arrays):
        plots._write(path, np.concatenate([np.ravel(array) for array in arrays]).tobytes())

    for stand_in in (samples, animate, curves):
        monkeypatch.setattr(plots, stand_in.__name__, stand_in)
    monkeypatch.setattr(metrics, "evaluate", lambda data, fake: {"n": len(fake)})


def tree(folder):
    """{path: content} of all files, {path: None} of all folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def arrays(folder, name=checkpoint.NAME):
    """What a checkpoint holds, without its checksum."""
    with np.load(folder / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key != "checksum"}


def assert_same_run(a, b):
    """Everything that two finished runs have written is equal, bit for bit."""
    one, two = arrays(a), arrays(b)
    assert one.keys() == two.keys() and {"theta_G", "theta_D", "averaged"} < one.keys()
    for name in one:  # with the random generators' states, in meta
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    for file in ("config.json", "metrics.csv", "samples.png", "curves.png", "training.gif", "scores.json"):
        assert (a / file).exists() == (b / file).exists(), file
        if (a / file).exists():
            assert (a / file).read_bytes() == (b / file).read_bytes(), file


def one_line(capsys, *parts):
    """Standard error is one sentence of train.py that holds all the parts, and standard output is empty."""
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"train\.py: [^\n]+\n", err), err
    assert "Traceback" not in err
    for part in parts:
        assert part in err, (part, err)
    return err


def at_step(monkeypatch, step, action):
    """Have ``action(gan)`` done once, after that many steps."""
    train_step = GAN.train_step

    def step_and_act(gan):
        train_step(gan)
        if gan.step == step:
            monkeypatch.setattr(GAN, "train_step", train_step)
            action(gan)

    monkeypatch.setattr(GAN, "train_step", step_and_act)


def interrupt(gan):
    signal.raise_signal(signal.SIGINT)


# ------------------------------------------------------------------------------------------- a whole run
@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """Good data of every kind of file."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    np.save(folder / "images.npy", rng.integers(0, 256, (30, 4, 4), np.uint8))
    rows = [f"{a:.4f},{100 + 10 * b:.4f},{c:.4f}" for a, b, c in rng.standard_normal((40, 3))]
    (folder / "table.csv").write_text("\n".join(["age,height,c", *rows]))
    for name, colours in (("grey", ()), ("colour", (3,))):
        (folder / name).mkdir()
        for i in range(9):
            Image.fromarray(rng.integers(0, 256, (6, 5, *colours), np.uint8)).save(folder / name / f"{i}.png")
    return folder


KINDS = {
    "digits": (64, 1797),
    "gaussian": (1, 10_000),
    "ring": (2, 2_500),
    "table.csv": (3, 40),
    "images.npy": (16, 30),
    "colour": (27, 9),
}


@pytest.mark.parametrize("data", KINDS)
def test_a_run_of_every_kind_of_data(data, here, data_folder, monkeypatch, capsys):
    monkeypatch.setattr(train.Run, "frame_every", property(lambda self: 3, lambda self, value: None), raising=False)
    own = (data_folder / data).exists()
    size = ["--image-size", "3"] if data == "colour" else []
    assert bare(*TINY[:-1], "--data", data_folder / data if own else data, "--gif", *size) == 0
    features, scored = KINDS[data]
    out, _ = capsys.readouterr()

    (folder,) = (here / "runs").iterdir()
    assert folder.name == Path(data).stem
    assert sorted(file.name for file in folder.iterdir()) == sorted([*FILES, "training.gif"])
    assert [file.name for file in (folder / "samples").iterdir()] == ["00000006.png"]
    for picture in ("samples.png", "curves.png", "samples/00000006.png"):
        pixels = np.asarray(Image.open(folder / picture).convert("L"))
        assert pixels.std() > 5 and min(pixels.shape) > 100, picture
    with Image.open(folder / "training.gif") as film:
        assert film.n_frames == 2

    rows = [row.split(",") for row in (folder / "metrics.csv").read_text().splitlines()]
    assert rows[0][:4] == ["step", "V", "loss_D", "loss_G"] and [row[0] for row in rows[1:]] == ["2", "4", "6"]
    assert all(len(row) == len(rows[0]) and np.isfinite([float(v) for v in row]).all() for row in rows[1:])
    saved = arrays(folder)
    assert saved["theta_G"].dtype == saved["theta_D"].dtype == saved["averaged"].dtype == np.float32
    assert len(saved["shift"]) == features
    assert json.loads((folder / "scores.json").read_text())["n"] == scored

    config = json.loads((folder / "config.json").read_text())
    assert config["steps"] == 6 and config["generator"] == "8, relu" and config["gif"] is True
    for name, value in config.items():  # the resolved configuration, printed once
        if name in runs.OPTIONS and value is not None:
            assert len(re.findall(rf"^  {re.escape(runs.flag(name))} +{re.escape(str(value))}$", out, re.M)) == 1, name
    assert f"{features} features" in out and re.search(r"^6 steps in ", out, re.M) and f"{scored}" in out
    assert out.rstrip().splitlines()[-1].split() == sorted(file.name for file in folder.iterdir())


def test_quiet_prints_nothing(fast, capfd):
    assert run() == 0
    assert capfd.readouterr() == ("", "")


def test_the_progress_bar_goes_to_standard_error(fast, capsys):
    assert bare(*TINY[:-1]) == 0
    out, err = capsys.readouterr()
    assert "6/6" in err and "step" in err and "V " in err and "6/6" not in out


def test_piped_and_headless(tmp_path):
    """No display, a backend of matplotlib that needs one, no UTF-8, another working folder, output to a pipe."""
    env = {name: value for name, value in os.environ.items() if "DISPLAY" not in name}
    env |= {"MPLBACKEND": "TkAgg", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, SCRIPT, *TINY[:-1], "--data", "ring"], cwd=tmp_path, env=env,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and "files go to" in done.stdout
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert {file.name for file in (tmp_path / "runs" / "ring").iterdir()} == {*FILES}


def test_the_reader_of_a_pipe_may_leave(tmp_path):
    """As in 'train.py | head': no traceback."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run([sys.executable, SCRIPT, *TINY[:-1]], cwd=tmp_path, stdout=pipe, stderr=subprocess.PIPE)
    assert done.returncode == 141 and done.stderr == b""


def test_runs_are_numbered_and_never_overwritten(fast):
    np.save("own.v1.npy", RNG.integers(0, 256, (20, 3, 3), np.uint8))
    for _ in range(2):
        assert run() == 0
        assert run("--data", "own.v1.npy", "--recipe", "ring") == 0
        assert run("--data", "own.v1.npy") == 0
    assert sorted(os.listdir("runs")) == ["digits", "digits-2", "own.v1", "own.v1-2", "ring", "ring-2"]


def test_the_same_seed_gives_the_same_run_and_another_a_different_one(fast):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run("--out", out, "--seed", seed) == 0
    assert_same_run(fast / "a", fast / "b")
    assert (arrays(fast / "a")["theta_G"] != arrays(fast / "c")["theta_G"]).mean() > 0.5
    assert (arrays(fast / "a")["order"] != arrays(fast / "c")["order"]).mean() > 0.5
    for file in ("metrics.csv", "samples.png"):
        assert (fast / "a" / file).read_bytes() != (fast / "c" / file).read_bytes()


def test_pictures_show_the_same_noise_each_time(here):
    started = train.Run.started(*train.resolve(train.parser().parse_args(TINY)))
    first = started.fixed_samples()
    started.gan.sample(5)
    np.testing.assert_array_equal(started.fixed_samples(), first)


def test_the_log_has_whole_steps_and_seven_digits(here):
    started = train.Run.started(*train.resolve(train.parser().parse_args(TINY)), "a")
    for step in (2, 123_456_789):
        started.log({"step": step, "V": -1 / 3})
    assert Path("a/metrics.csv").read_text() == "step,V\n2,-0.3333333\n123456789,-0.3333333\n"


def test_config_json_reproduces_the_run(fast):
    options = "--init-G 0.05 --r1 0.3 --optimizer adam --lr 1e-3 --lr-D 2e-3 --dtype float64 --momentum-end 0.7"
    assert run("--out", "a", *options.split(), "--loss", "minimax", "--output-bias", "data") == 0
    args = []
    for name, value in json.loads((fast / "a" / "config.json").read_text()).items():
        if name in runs.OPTIONS and value not in (None, False):
            args += [runs.flag(name), str(value)]
    assert bare(*args, "--out", "b", "--quiet", "--recipe", "ring") == 0
    config = json.loads((fast / "b" / "config.json").read_text())
    (fast / "b" / "config.json").write_text((fast / "a" / "config.json").read_text())
    assert config.pop("recipe") == "ring" and config.items() <= json.loads((fast / "a/config.json").read_text()).items()
    assert_same_run(fast / "a", fast / "b")
    assert arrays(fast / "a")["theta_D"].dtype == np.float64


def test_options_override_the_recipe(here):
    Path("mine.toml").write_text('data = "moons"\nlr = 1\ninit_G = 2\nk = 3\nseed = 9\n')
    for args, expected in (
        ([], ("digits", recipes.load("digits")["lr"], "he", 1, 0)),
        (["--data", "ring"], ("ring", recipes.load("ring")["lr"], "he", 1, 0)),
        (["--data", "swiss.csv"], ("swiss.csv", runs.OPTIONS["lr"], "he", 1, 0)),
        (["--recipe", "mine.toml"], ("moons", 1, 2, 3, 9)),
        (["--recipe", "mine.toml", "--data", "ring", "--lr", "2", "--init-G", "0.5", "--k", "4", "--seed", "0"],
         ("ring", 2, 0.5, 4, 0)),
        (["--recipe", "ring", "--init-G", "glorot"], ("ring", recipes.load("ring")["lr"], "glorot", 1, 0)),
    ):  # fmt: skip
        _, options = train.resolve(train.parser().parse_args(args))
        assert tuple(options[name] for name in ("data", "lr", "init_G", "k", "seed")) == expected
        assert options.keys() == runs.OPTIONS.keys()


def test_every_recipe_is_complete(here):
    """Each can be built, and the recipe of a built-in set is the one that --data chooses."""
    for name in recipes.names():
        recipe, options = train.resolve(train.parser().parse_args(["--recipe", name]))
        GAN(**{option: options[option] for option in runs.GAN_OPTIONS})
        if recipe == options["data"]:
            assert train.resolve(train.parser().parse_args(["--data", name])) == (recipe, options)


def test_help(capsys):
    assert bare("--help") == 0
    out, err = capsys.readouterr()
    assert err == "" and out.isascii()
    actions = [action for action in train.parser()._actions if action.dest != "help"]
    assert {action.dest for action in actions} >= runs.OPTIONS.keys()
    for action in actions:
        assert action.option_strings[0] in out and action.help and len(action.help) > 10
    for name in ("--recipe", "--data", "--resume", "--out", "--quiet", "--gif"):
        assert name in out


# ------------------------------------------------------------------------------------------- bad input
def bad_data(folder):
    """Data files that are wrong, each in its own way."""
    np.save(folder / "good.npy", np.ones((20, 3)))
    np.save(folder / "nan.npy", [[1.0, np.nan]] * 20)
    np.save(folder / "inf.npy", [[1.0], [np.inf]])
    np.save(folder / "object.npy", np.array([{"a": 1}, None]), allow_pickle=True)
    np.save(folder / "no-rows.npy", np.ones((0, 3)))
    np.save(folder / "text.npy", np.array(["a", "b"]))
    np.savez(folder / "good.npz", X=np.ones((20, 3)))
    good, zipped = (folder / "good.npy").read_bytes(), (folder / "good.npz").read_bytes()
    for name, content in {
        "truncated.npy": good[:-5],
        "magic.npy": b"\x93NUMPI" + good[6:],
        "zero.npy": b"",
        "truncated.npz": zipped[: len(zipped) // 2],
        "flipped.npz": zipped[:200] + bytes([zipped[200] ^ 1]) + zipped[201:],
        "words.csv": b"a,b\n1,2\n3,four\n",
        "ragged.csv": b"1,2\n3\n",
        "nan.csv": b"1,2\n3,nan\n",
        "empty.csv": b"",
        "header.csv": b"a,b\n",
        "binary.csv": bytes(range(256)),
        "notes.txt": b"1 2 3",
        "file": b"",
        "not.toml": b"steps = = 3",
        "unknown.toml": b"stepz = 3",
        "many.toml": b'steps = "many"',
        "fast.toml": b'lr = "fast"',
        "five.toml": b"generator = 5",
        "long.toml": b"steps = " + b"9" * 5000,
        "deep.toml": b"generator = " + b"[" * 5000,
        "dash.toml": b"batch-size = 5",
        "true.toml": b"k = true",
        "half.toml": b"seed = 1.5",
        "list.toml": b"init_G = [1]",
        "yes.toml": b"init_D = true",
        "gif.toml": b'gif = "maybe"',
        "data.toml": b"data = 7",
        "save.toml": b"save_every = [2]",
        "rate.toml": b"lr = nan",
        "none.toml": b"momentum = 2",
    }.items():
        (folder / name).write_bytes(content)
    (folder / "no-images").mkdir()
    (folder / "bad-image").mkdir()
    (folder / "bad-image" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    (folder / "taken").mkdir()
    (folder / "taken" / "config.json").write_text("{}")
    (folder / "also-taken").mkdir()
    (folder / "also-taken" / "checkpoint.npz").write_text("")


# arguments -> what the sentence must hold
BAD = [
    ("--recipe nope", "'nope'"), ("--recipe nope.toml", "nope.toml"), ("--recipe", "--recipe"), ("--recipe=", "''"),
    ("--recipe long.toml", "long.toml"), ("--recipe deep.toml", "deep.toml"),
    ("--recipe dash.toml", "write batch_size"), ("--data-dir nowhere --data ring", "not for 'ring'"),
    ("--lr 1e38", "below 1e+38"), ("--momentum-steps 3", "momentum-end"), ("--resume runs/x --data-dir x", "runs/x"),
    ("--recipe not.toml", "not.toml"), ("--recipe unknown.toml", "'stepz'"), ("--recipe many.toml", "'many'"),
    ("--recipe fast.toml", "'fast'"), ("--recipe five.toml", "generator is 5"), ("--recipe true.toml", "k is True"),
    ("--recipe half.toml", "seed is 1.5"), ("--recipe list.toml", "init-G is [1]"), ("--recipe gif.toml", "'maybe'"),
    ("--recipe yes.toml", "init-D is True"), ("--recipe data.toml", "data is 7"), ("--recipe save.toml", "[2]"),
    ("--recipe rate.toml", "nan"), ("--recipe none.toml", "2"), ("--recipe no-images", "no-images"),
    ("--data nope", "'nope' is no data set"), ("--data nope.npy", "nope.npy"), ("--data=", "''"),
    ("--data no-images", "no-images"), ("--data bad-image", "a.png"), ("--data notes.txt", "notes.txt"),
    ("--data file", "'file'"),
    ("--data nan.npy", "nan in row 0, column 1"), ("--data inf.npy", "inf in row 1"), ("--data object.npy", "objects"),
    ("--data no-rows.npy", "(0, 3)"), ("--data text.npy", "text.npy"), ("--data truncated.npy", "truncated.npy"),
    ("--data magic.npy", "magic.npy"), ("--data zero.npy", "zero.npy"), ("--data truncated.npz", "truncated.npz"),
    ("--data flipped.npz", "flipped.npz"), ("--data words.csv", "'four'"), ("--data ragged.csv", "line 2"),
    ("--data nan.csv", "'nan'"), ("--data empty.csv", "empty.csv"), ("--data header.csv", "header.csv"),
    ("--data binary.csv", "binary.csv"), ("--data good.npy --batch-size 21", "21"),
    ("--data mnist --data-dir file", "file"),
    ("--data-dir nowhere --data mnist", "nowhere"),
    ("--image-size 0", "0"), ("--image-size -3", "-3"), ("--image-size x", "'x'"), ("--image-size 8", "8"),
    ("--generator rulu", "'rulu'"), ("--generator 0,relu", "'0'"), ("--generator 9e9", "'9e9'"),
    ("--generator 1000000000000000000000", "1000000000000000000000"), ("--generator 99999999999999", "99999999999999"),
    ("--discriminator maxout", "'maxout'"), ("--discriminator -4", "-4"), ("--discriminator", "--discriminator"),
    ("--latent-dim 0", "0"), ("--latent-dim 1.5", "'1.5'"), ("--latent-dim 9999999999999999", "9999999999999999"),
    ("--latent-dim 1000000000000000000000", "1000000000000000000000"),
    ("--conditional=yes", "'yes'"), ("--conditional --data swiss-roll", "'swiss-roll' has none"),
    ("--clusters 1", "1"), ("--clusters -3", "-3"), ("--clusters few", "'few'"), ("--clusters 1798", "1798"),
    ("--clusters 9999999999999999 --data ring", "9999999999999999"), ("--clusters 4 --conditional", "4"),
    ("--cluster-parts -1", "-1"), ("--cluster-parts few", "'few'"), ("--clusters 4 --cluster-parts 3", "3"),
    ("--clusters 4 --cluster-parts 1798", "1798"), ("--clusters 1798 --cluster-parts 1800", "1798"),
    ("--clusters 4 --cluster-parts 9999999999999999 --data ring", "9999999999999999"),
    ("--label-column y", "for .csv files"), ("--label-column y --data words.csv", "no single column 'y'"),
    ("--prior cauchy", "'cauchy'"), ("--init-G xavier", "'xavier'"), ("--init-G nan", "nan"), ("--init-G -1", "-1"),
    ("--init-G 1e300", "1e+300"), ("--init-D 0", "0"), ("--init-D inf", "inf"), ("--output-bias one", "'one'"),
    ("--steps 0", "0"), ("--steps -5", "-5"), ("--steps many", "'many'"), ("--steps 1e3", "'1e3'"),
    ("--batch-size 0", "0"), ("--batch-size -8", "-8"), ("--batch-size 1798", "1798"), ("--batch-size nan", "'nan'"),
    ("--batch-size 9999999999999999 --data ring", "9999999999999999"),
    ("--k 0", "0"), ("--k -1", "-1"), ("--k 2 --update simultaneous", "2"), ("--loss hinge", "'hinge'"),
    ("--update never", "'never'"), ("--optimizer lbfgs", "'lbfgs'"),
    ("--lr nan", "nan"), ("--lr 0", "0"), ("--lr -0.1", "-0.1"), ("--lr inf", "inf"), ("--lr fast", "'fast'"),
    ("--lr 1e300", "1e+300"), ("--lr-D nan", "nan"), ("--lr-D 0", "0"), ("--lr-end 1.5", "1.5"),
    ("--lr-end nan", "nan"),
    ("--lr-decay 0.5", "0.5"), ("--lr-decay nan", "nan"), ("--momentum-steps 0", "0"),
    ("--momentum 1", "1"), ("--momentum nan", "nan"), ("--momentum-end 1.5", "1.5"), ("--momentum-end nan", "nan"),
    ("--r1 -1", "-1"), ("--r1 nan", "nan"), ("--r1 1e40", "1e+40"), ("--r1-end -1", "-1"), ("--r1-end nan", "nan"),
    ("--r2 -1", "-1"), ("--r2 inf", "inf"), ("--average 1", "1"), ("--average -0.1", "-0.1"), ("--average nan", "nan"),
    ("--seed -1", "-1"), ("--seed 1.5", "'1.5'"), ("--seed 99999999999999999999", "99999999999999999999"),
    ("--backend torch", "'torch'"), ("--dtype float16", "'float16'"), ("--dtype int8", "'int8'"),
    ("--out taken", "taken"), ("--out also-taken", "also-taken"), ("--out file", "file"), ("--out=", "''"),
    ("--out file/a/b", "file/a/b"), ("--out new/" + "x" * 300, "x" * 300), ("--out /proc/nope/a", "/proc/nope/a"),
    ("--resume nowhere", "nowhere"), ("--resume file", "file"), ("--resume no-images", "no-images"),
    ("--resume=", "holds no run"), ("--resume also-taken", "also-taken"),
    ("--save-every 0", "0"), ("--save-every -1", "-1"), ("--save-every x", "'x'"), ("--report-every 0", "0"),
    ("--truncation 0", "0"), ("--truncation 1.1", "1.1"), ("--truncation half", "'half'"),
    ("--report-every 99999999999999", "99999999999999"), ("--report-every -2", "-2"),
    ("--nonsense 3", "--nonsense"), ("ring", "ring"), ("--gif=yes", "'yes'"), ("--quiet=1", "'1'"),
    ("--version=1", "'1'"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    bad_data(folder)
    return folder


@pytest.mark.parametrize("args, part", BAD, ids=[re.sub("x{9,}", "xx", args) for args, _ in BAD])
def test_bad_input_is_one_sentence_and_leaves_nothing(args, part, bad_folder, monkeypatch, capsys):
    monkeypatch.chdir(bad_folder)
    monkeypatch.setenv("MINIGAN_CACHE", str(bad_folder / "file"))  # so that nothing is downloaded
    before = tree(bad_folder)
    others = [] if re.match("--(resume|recipe)", args) else TINY[:-1]
    assert bare(*others, *args.split()) == 2
    one_line(capsys, part)
    assert tree(bad_folder) == before


def test_every_option_has_a_bad_value():
    tried = {re.split("[ =]", args)[0] for args, _ in BAD}
    options = {action.option_strings[0] for action in train.parser()._actions}
    assert options - tried == {"-h"}


def test_more_memory_than_there_is(here, monkeypatch, capsys):
    def load(*args):
        raise MemoryError("Unable to allocate 1 EiB")

    monkeypatch.setattr(runs, "load", load)
    assert run() == 2
    one_line(capsys, "not enough memory", "1 EiB")
    assert not list(here.iterdir())


@pytest.mark.parametrize("package", ["matplotlib", "tqdm"])
def test_a_package_that_is_missing(here, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    assert run() == 2
    one_line(capsys, f"the package {package} is not installed; pip install -r requirements.txt")
    assert not list(here.iterdir())


def test_ctrl_c_before_the_first_step(here, monkeypatch, capsys):
    monkeypatch.setattr(runs, "load", lambda *args: interrupt(None))
    assert run() == 130
    assert capsys.readouterr().err == "train.py: interrupted\n" and not list(here.iterdir())


# ------------------------------------------------------------------------------------------- stop and resume
# options of the run, the step after which it is stopped, the signal
STOPS = {
    "sgd, r1, dropout, gif": (
        "--data images.npy --momentum-end 0.8 --r1 0.1 --r1-end 0.2 --discriminator dropout+0.8,8,leaky_relu --gif",
        7, signal.SIGINT),
    "adam, k 2, r2, no average": (
        "--data images.npy --optimizer adam --lr 0.01 --k 2 --r2 0.1 --average 0 --generator dropout+0.9,maxout+4x2",
        5, signal.SIGTERM),
    "simultaneous, after the average": (
        "--data images.npy --update simultaneous --prior spherical --average 0.9 --r1 0", 11, signal.SIGINT),
    "stream, adam, minimax, surfaces, gif": (
        "--data gaussian --optimizer adam --lr 0.01 --loss minimax --prior uniform --gif", 6, signal.SIGTERM),
    "table, float64, at a report and a checkpoint": (
        "--data table.csv --dtype float64 --save-every 8", 8, signal.SIGINT),
    "at the first step": ("--data images.npy", 1, signal.SIGTERM),
}  # fmt: skip
TWELVE = ["--steps", "12", "--report-every", "4", "--save-every", "12"]  # 30 rows: an epoch is 3 steps


@pytest.mark.parametrize("case", STOPS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(case, fast, data_folder, monkeypatch, capsys):
    options, step, number = STOPS[case]
    monkeypatch.chdir(data_folder)
    if "r1-end" in options:  # once with the pictures themselves
        monkeypatch.setattr(plots, "samples", SAMPLES)
        monkeypatch.setattr(plots, "animate", ANIMATE)
    args = [*TINY[:-1], *TWELVE, *(option.replace("+", " ") for option in options.split())]
    assert bare(*args, "--out", fast / "whole", "--quiet") == 0

    at_step(monkeypatch, step, lambda gan: signal.raise_signal(number))
    assert bare(*args, "--out", fast / "a b") == 128 + number
    out, _ = capsys.readouterr()
    assert f"Stopped at step {step} of 12" in out and f"--resume '{fast / 'a b'}'" in out
    assert json.loads(bytes(arrays(fast / "a b")["meta"]))["step"] == step
    assert not (fast / "a b" / "scores.json").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    assert bare("--resume", fast / "a b", "--quiet") == 0
    assert_same_run(fast / "whole", fast / "a b")
    assert (fast / "a b" / "training.gif").exists() == ("--gif" in options)


def test_a_killed_run_goes_on_from_its_last_checkpoint(fast, data_folder, monkeypatch):
    """What was logged and drawn after the checkpoint is logged and drawn again, once."""

    def kill(gan):
        raise InterruptedError

    args = ["--data", data_folder / "images.npy", *TWELVE, "--save-every", "3", "--report-every", "1", "--gif"]
    assert run(*args, "--out", "whole") == 0
    at_step(monkeypatch, 8, kill)
    assert run(*args, "--out", "part") == 2
    assert (fast / "part" / "metrics.csv").read_text().count("\n") == 1 + 7
    with open(fast / "part" / "metrics.csv", "a") as file:
        file.write("3,0.5")  # the half of a row
    assert run_on("part") == 0
    assert_same_run(fast / "whole", fast / "part")


def run_on(folder, *args):
    return bare("--resume", folder, "--quiet", *args)


def test_a_run_may_be_stopped_again_and_again(fast, monkeypatch):
    assert run("--out", "whole") == 0
    at_step(monkeypatch, 2, interrupt)
    assert run("--out", "part") == 130
    at_step(monkeypatch, 3, interrupt)
    assert run_on("part") == 130
    assert run_on("part") == 0
    assert_same_run(fast / "whole", fast / "part")


def test_a_signal_in_the_last_step_does_not_leave_the_run_unfinished(fast, monkeypatch):
    at_step(monkeypatch, 6, interrupt)
    assert run("--out", "a") == 0
    assert (fast / "a" / "scores.json").exists()


def test_a_finished_run_goes_on_only_with_more_steps(here, capsys):
    assert run("--out", "a") == 0
    before = tree(here)
    for args, steps in (([], 6), (["--steps", "6"], 6), (["--steps", "3"], 3)):
        assert run_on("a", *args) == 2
        one_line(capsys, f"a has done 6 of {steps} steps", "--steps")
        assert tree(here) == before
    assert run_on("a", "--steps", "8", "--save-every", "1", "--gif", "--backend", "numpy") == 0
    config = json.loads((here / "a" / "config.json").read_text())
    assert (config["steps"], config["save_every"], config["gif"], config["backend"]) == (8, 1, True, "numpy")
    assert [row.split(",")[0] for row in (here / "a" / "metrics.csv").read_text().split()] == ["step", *"2468"]
    with Image.open(here / "a" / "training.gif") as film:
        assert film.n_frames == 2
    with Image.open(here / "a" / "curves.png") as curves:
        assert curves.size[0] > 500


def test_a_finished_run_that_goes_on_is_not_finished(fast, monkeypatch):
    assert run("--out", "a") == 0
    at_step(monkeypatch, 7, interrupt)
    assert run_on("a", "--steps", "8") == 130
    assert not (fast / "a" / "scores.json").exists()  # which were of step 6


def test_pictures_that_were_not_drawn_at_the_end_are_drawn_by_resuming(fast, monkeypatch):
    assert run("--out", "whole", "--gif") == 0
    with monkeypatch.context() as patch:
        patch.setattr(train.Run, "draw_curves", interrupt)
        assert run("--out", "part", "--gif") == 130
    (fast / "part" / "samples.png").unlink()
    assert run_on("part") == 0
    assert_same_run(fast / "whole", fast / "part")


def test_an_animation_asked_for_when_all_steps_are_done(here):
    assert run("--out", "a") == 0
    (here / "a" / "scores.json").unlink()  # as if it had been stopped while it was scored
    assert run_on("a", "--gif") == 0
    with Image.open(here / "a" / "training.gif") as film:
        assert film.n_frames == 1


def test_a_folder_with_anything_in_it_is_refused(fast, capsys):
    mine = Path("mine")
    mine.mkdir()
    (mine / "metrics.csv").write_text("my own")
    assert run("--out", "mine") == 2
    one_line(capsys, "mine is not empty (metrics.csv); choose another --out")
    assert tree(mine) == {mine / "metrics.csv": b"my own"}
    assert run("--out", "a") == 0 and run("--out", "a") == 2
    one_line(capsys, "a holds a run already; choose another --out, or go on with --resume a")
    (fast / "a" / checkpoint.NAME).rename(fast / "a" / checkpoint.PREVIOUS)
    assert run("--out", "a") == 2
    one_line(capsys, "a holds a run already")
    (fast / "a" / checkpoint.PREVIOUS).unlink()  # as after divergence, or a kill, before the first checkpoint
    assert run("--out", "a") == 2
    one_line(capsys, "a holds a run that has saved nothing; choose another --out, or remove it")
    assert run_on("a") == 2
    one_line(capsys, "does not exist", "start again in another folder")
    (fast / "new").mkdir()
    (fast / "new" / ".hidden").write_text("")
    assert run("--out", "new") == 0


def test_what_is_left_of_a_run_that_saved_nothing_gives_way(fast, capsys):
    """So that the advice after divergence can be followed with the same --out."""
    failing = "--data ring --lr 9e29 --average 0 --steps 60 --save-every 60".split()
    assert run(*failing, "--out", "a") == 2 and sorted(os.listdir("a")) == ["config.json", "metrics.csv"]
    assert run("--out", "a") == 0
    for file, text in (
        ("config.json", "{}"), ("config.json", "not of minigan"), ("config.json", '{"data": "imagenet"}'),
        ("metrics.csv", "step,V\n1,2\n"),
    ):  # fmt: skip
        assert run(*failing, "--out", "b") == 2
        (fast / "b" / file).write_text(text)
        capsys.readouterr()
        assert run("--out", "b") == 2
        one_line(capsys, "choose another --out")
        assert (fast / "b" / file).read_text() == text
        shutil.rmtree(fast / "b")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data_folder):
    """A run that was stopped at step 4 of 6, and the whole of it."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        leave_out_the_slow_parts(patch)
        shutil.copy(data_folder / "images.npy", "own.npy")
        args = ["--data", "own.npy", "--save-every", "3", "--init-G", "0.1"]
        assert run(*args, "--out", "whole") == 0
        at_step(patch, 4, interrupt)
        assert run(*args, "--out", "part") == 130
    return folder


@pytest.fixture
def part(stopped, fast):
    """A copy of the stopped run to break, in the working folder."""
    shutil.copytree(stopped, fast, dirs_exist_ok=True)
    return fast / "part"


@pytest.mark.parametrize(
    "args, named",
    [
        (["--seed", "1"], "--seed"),
        (["--lr", "0.2", "--batch-size", "9"], "--batch-size, --lr"),
        (["--generator", "9, relu"], "--generator"),
        (["--init-G", "he"], "--init-G"),
        (["--dtype", "float64"], "--dtype"),
        (["--recipe", "ring"], "--recipe"),
        (["--out", "b"], "--out"),
        (["--k", "2", "--out", "b"], "--k, --out"),
        (["--report-every", "3"], "--report-every"),
    ],
)
def test_what_would_make_it_another_run_is_refused(args, named, part, capsys):
    before = tree(part.parent)
    assert run_on("part", *args) == 2
    sentence = one_line(capsys, "cannot change")
    assert all(flag in sentence for flag in named.split(", "))
    assert sentence.count("--") == named.count("--") + 1  # and "--resume"
    assert tree(part.parent) == before


def test_a_stopped_run_cannot_have_fewer_steps_than_it_has_done(part, capsys):
    before = tree(part.parent)
    assert run_on("part", "--steps", "3") == 2
    one_line(capsys, "part has done 4 of 3 steps", "--steps")
    assert tree(part.parent) == before


def test_an_option_given_again_with_its_value_is_no_change(part):
    assert run_on("part", "--seed", "0", "--init-G", "0.10", "--data", "own.npy", "--generator", "8, relu") == 0
    assert_same_run(part, part.parent / "whole")


def test_data_that_have_moved(part, capsys):
    Path("elsewhere").mkdir()
    shutil.move("own.npy", "elsewhere/mine.npy")
    before = tree(part.parent)
    assert run_on("part") == 2
    one_line(capsys, "own.npy", "are not there", "--data")
    assert run_on("part", "--data", "ring") == 2
    one_line(capsys, "'ring' is not what the run in part was trained on")
    assert tree(part.parent) == before
    assert run_on("part", "--data", "elsewhere/mine.npy") == 0
    for name in ("theta_G", "theta_D", "averaged"):
        np.testing.assert_array_equal(arrays(part)[name], arrays(part.parent / "whole")[name])
    assert json.loads((part / "config.json").read_text())["data"] == "elsewhere/mine.npy"


def test_other_data_is_refused(part, capsys):
    X = np.load("own.npy")
    for changed in (X[:-1], X ^ (np.arange(X.size) == 7).reshape(X.shape), X[::-1]):
        np.save("own.npy", changed)
        before = tree(part.parent)
        assert run_on("part") == 2
        one_line(capsys, "own.npy", "not what the run in part was trained on")
        assert tree(part.parent) == before
    os.remove("own.npy")
    assert run_on("part") == 2
    one_line(capsys, "own.npy")
    np.save("own.npy", X)
    assert run_on("part") == 0
    assert_same_run(part, part.parent / "whole")


def damage(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    match how:
        case "truncated":
            path.write_bytes(content[:middle])
        case "flipped":
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not a checkpoint")
        case "another format":
            with open(path, "wb") as file:
                np.save(file, np.zeros(3))
        case "missing":
            path.unlink()
        case "a folder":
            path.unlink()
            path.mkdir()


DAMAGES = ["truncated", "flipped", "empty", "text", "another format", "missing"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(how, part, capsys):
    damage(part / checkpoint.NAME, how)
    assert run_on("part") == 0
    one_line(capsys, "part/checkpoint.npz", "going on from the checkpoint before it")
    assert_same_run(part, part.parent / "whole")


@pytest.mark.parametrize("how", DAMAGES + ["a folder"])
def test_two_damaged_checkpoints_are_one_sentence(how, part, capsys):
    damage(part / checkpoint.NAME, how)
    damage(part / checkpoint.PREVIOUS, how)
    before = tree(part.parent)
    assert run_on("part") == 2
    one_line(capsys, "part/checkpoint.npz", "part/previous-checkpoint.npz")
    assert tree(part.parent) == before


@pytest.mark.parametrize(
    "edit, named",
    [
        (None, "config.json"),
        ("", "config.json"),
        ("{", "config.json"),
        ("[1]", "not an object"),
        ("[" * 100_000, "config.json"),
        (b"\xff\xfe", "config.json"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"steps": True}, "steps is True"),
        ({"steps": 0}, "0"),
        ({"steps": 10**30}, "1000000000000000000000000000000"),
        ({"lr": "fast"}, "lr 'fast'"),
        ({"lr": 0.2}, "lr 0.2"),
        ({"generator": 5}, "generator 5"),
        ({"generator": "9, relu"}, "'9, relu'"),
        ({"gif": 1}, "gif is 1"),
        ({"save_every": 0}, "0"),
        ({"data": 7}, "7"),
        ({"data": None}, "None"),
        ({"data": "digits"}, "digits"),
        ({"data_dir": []}, "[]"),
        ({"image_size": "x"}, "'x'"),
        ({"backend": "torch"}, "'torch'"),
    ],
)
def test_a_damaged_config_is_one_sentence(edit, named, part, capsys):
    path = part / "config.json"
    if isinstance(edit, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    elif isinstance(edit, str):
        path.write_text(edit)
    elif edit is None:
        path.unlink()
    else:
        path.write_bytes(edit)
    before = tree(part.parent)
    assert run_on("part") == 2
    one_line(capsys, named.replace("'9, relu'", "9, relu"))
    assert tree(part.parent) == before


def test_what_config_json_lacks_comes_from_the_checkpoint(part):
    """As after an update of minigan that has brought new options."""
    path = part / "config.json"
    config = json.loads(path.read_text())
    for name in ("r2", "steps", "gif", "image_size"):
        config.pop(name)
    path.write_text(json.dumps(config))
    assert run_on("part") == 0
    assert_same_run(part, part.parent / "whole")


@pytest.mark.parametrize("content", [None, b"", b"\xff\n", b"step,V\n2,0\n2\nx,1\n9,9\n"])
def test_a_damaged_log_does_not_stop_a_run(content, part):
    if content is None:
        (part / "metrics.csv").unlink()
    else:
        (part / "metrics.csv").write_bytes(content)
    assert run_on("part") == 0
    np.testing.assert_array_equal(arrays(part)["theta_G"], arrays(part.parent / "whole")["theta_G"])
    rows = (part / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("step,V,loss_D") and [row.split(",")[0] for row in rows] == ["step", "6"]


@pytest.mark.parametrize(
    "number, code, twice",
    [
        (signal.SIGINT, 130, False), (signal.SIGTERM, 143, False), (signal.SIGHUP, 129, False),
        (signal.SIGTERM, 143, True), (signal.SIGHUP, 129, True),
    ],
)  # fmt: skip
def test_signals_from_outside(number, code, twice, tmp_path, capfd):
    """A signal at any moment: the run says how to go on, and does."""
    args = [*TINY[:-1], "--data", "ring", "--steps", "100000000", "--save-every", "100000000", "--out", "r"]
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # else the tests' own nohup would be inherited
    process = subprocess.Popen([sys.executable, SCRIPT, *args], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    signal.signal(signal.SIGHUP, before)
    deadline, log = time.monotonic() + 60, tmp_path / "r" / "metrics.csv"
    while process.poll() is None and time.monotonic() < deadline and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    process.send_signal(number)
    if twice:
        time.sleep(0.003)
        process.send_signal(number)  # as a closed terminal and its shell may both say it
    out, err = process.communicate(timeout=60)
    if twice and process.returncode == -number:  # the second one came when all was saved, to the last file
        assert (tmp_path / "r" / "samples.png").exists()
        return
    assert process.returncode == code and "Traceback" not in err
    step = int(re.search(r"Stopped at step (\d+) of 100000000; go on with: python train.py --resume r$", out, re.M)[1])
    assert run_on(tmp_path / "r", "--steps", step + 3) == 0
    assert {file.name for file in (tmp_path / "r").iterdir()} - {checkpoint.PREVIOUS} == {*FILES}


def test_a_closed_terminal_does_not_stop_what_nohup_has_started():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with train.StopSignal():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with train.StopSignal() as stop:
            assert signal.getsignal(signal.SIGHUP) == stop._take
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


# ------------------------------------------------------------------------------------------- divergence, full disks
@pytest.mark.parametrize("data", ["digits", "ring"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_divergence_is_one_sentence_with_step_cause_and_remedy(data, optimizer, here, capsys):
    args = ["--data", data, "--optimizer", optimizer, "--lr", "9e29", "--gif", "--average", "0"]
    assert run(*args, "--steps", "60", "--save-every", "60") == 2
    sentence = one_line(capsys, "learning rate", "--lr")
    assert int(re.search(r"step (\d+)", sentence)[1]) in range(1, 61)
    (folder,) = (here / "runs").iterdir()
    assert sorted(os.listdir(folder)) == ["config.json", "metrics.csv"]


def test_divergence_leaves_the_last_good_checkpoint(here, monkeypatch, capsys):
    """Even where the log has not noticed yet when the next checkpoint is due."""
    at_step(monkeypatch, 5, lambda gan: gan.G.theta.fill(np.nan))
    assert run("--save-every", "3", "--report-every", "4", "--steps", "100", "--out", "a") == 2
    one_line(capsys, "diverged before step 6")
    assert sorted(os.listdir("a")) == ["checkpoint.npz", "config.json", "metrics.csv", "samples", "samples.png"]
    assert os.listdir("a/samples") == ["00000003.png"]
    assert [row.split(",")[0] for row in (here / "a" / "metrics.csv").read_text().split()] == ["step", "4"]
    gan, _, note = checkpoint.load(here / "a")
    assert gan.step == 3 and not note and np.isfinite(gan.sample(5)).all()


@pytest.mark.parametrize("data", ["digits", "ring"])
def test_divergence_before_the_first_report_is_said_as_such(data, fast, capsys):
    """And not as a traceback, or as mode collapse, by the look at the variety of the samples that comes first."""
    args = "--generator 8,relu --discriminator 8,relu --lr 1e9 --steps 40 --report-every 30".split()
    assert bare("--data", data, *args, "--out", "a") == 2
    err = capsys.readouterr().err
    assert "training diverged before step" in err and "variety" not in err


def test_a_stop_does_not_save_what_has_diverged(here, monkeypatch, capsys):
    def diverge(gan):
        gan.D.theta.fill(np.inf)
        interrupt(gan)

    at_step(monkeypatch, 5, diverge)
    assert run("--save-every", "3", "--report-every", "100", "--steps", "100", "--out", "a") == 2
    one_line(capsys, "diverged")
    assert checkpoint.load(here / "a")[0].step == 3


@pytest.mark.parametrize(
    "file",
    ["checkpoint.npz", "previous-checkpoint.npz", "samples.png", "00000006.png", "curves.png", "training.gif",
     "scores.json", "metrics.csv"],
)  # fmt: skip
def test_a_disk_that_is_full_ends_in_a_sentence_and_loses_nothing(file, fast, data_folder, monkeypatch, capsys):
    args = ["--data", data_folder / "images.npy", "--save-every", "3", "--gif"]
    assert run(*args, "--out", "whole") == 0

    replace, tries = os.replace, []

    def full(source, target):
        if Path(target).name == file:
            tries.append(target)
            if len(tries) == (2 if file in ("checkpoint.npz", "samples.png") else 1):
                raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))
        replace(source, target)

    def full_log(path, *mode, **encoding):
        tries.append(path)
        if len(tries) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return open(path, *mode, **encoding)

    with monkeypatch.context() as patch:
        if file == "metrics.csv":
            patch.setattr(runs, "open", full_log, raising=False)
        else:
            patch.setattr(os, "replace", full)
        assert run(*args, "--out", "part") == 2
    one_line(capsys, "part" if file == "metrics.csv" else file, "No space left", "--resume part")
    assert not [path for path in (fast / "part").rglob("*") if path.suffix in (".part", ".tmp", ".try")]
    gan, _, _ = checkpoint.load(fast / "part")
    assert gan.step in (3, 6)
    assert run_on("part") == 0
    capsys.readouterr()
    assert_same_run(fast / "whole", fast / "part")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(fast, monkeypatch, capsys):
    savez = np.savez

    def full(file, **arrays):
        savez(file, **arrays)
        if b'"step": 6' in bytes(arrays["meta"]):
            file.truncate(100)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert run("--save-every", "3", "--out", "a") == 2
    one_line(capsys, "a cannot be written at step 6 (No space left on device)", "--resume a")
    assert sorted(os.listdir("a")) == ["checkpoint.npz", "config.json", "metrics.csv", "samples", "samples.png"]
    assert checkpoint.load("a")[0].step == 3


def full(*args, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_when_a_run_is_resumed(part, monkeypatch, capsys):
    before = tree(part)
    for target, name, hint in ((runs, "write", "mend that"), (train.Run, "log", "--resume part")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, full)
            assert run_on("part") == 2
        one_line(capsys, "No space left on device", hint)
        assert tree(part) == before
    assert run_on("part") == 0
    assert_same_run(part, part.parent / "whole")


def test_nothing_is_left_of_a_run_that_could_not_begin(here, monkeypatch, capsys):
    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runs, "write", full)
    for args, folder in (([], "runs/digits"), (["--out", "b/c"], "b/c")):
        assert run(*args) == 2
        one_line(capsys, folder, "No space left on device", "--out")
        assert not list(here.iterdir())


def test_what_lies_in_a_folder_that_cannot_be_read_stays(here, monkeypatch, capsys):
    (here / "a").mkdir()
    (here / "a" / "config.json").write_text("{}")

    def unreadable(folder, iterdir=Path.iterdir):
        if folder.name == "a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return iterdir(folder)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", unreadable)
        assert run("--out", "a") == 2
    one_line(capsys, "a cannot be written (Permission denied)")
    assert (here / "a" / "config.json").read_text() == "{}"


def test_a_folder_that_vanishes_ends_in_a_sentence(fast, monkeypatch, capsys):
    at_step(monkeypatch, 3, lambda gan: shutil.rmtree(fast / "a"))
    assert run("--out", "a") == 2
    one_line(capsys, "a/metrics.csv", "No such file or directory")


def test_scores_are_json_also_where_there_is_no_number(here, capsys):
    assert bare(*TINY[:-1], "--data", "ring", "--init-G", "1e-6", "--lr", "1e-9") == 0  # all in the ring's middle
    assert re.search(r"^mode width / sigma +none ", capsys.readouterr().out, re.M)
    text = (here / "runs" / "ring" / "scores.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["sigma_ratio"] is None


def test_a_recipe_may_begin_with_a_mark_of_its_bytes_order(here):
    Path("mine.toml").write_text("seed = 7", encoding="utf-8-sig")
    assert recipes.load("mine.toml") == {"seed": 7}


def test_small_products_get_one_thread_and_large_ones_a_share_of_the_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    gan = GAN(generator="8, relu", discriminator="8, relu", latent_dim=2, batch_size=8, backend="numpy")
    gan.build(np.zeros((20, 3)) + np.arange(20)[:, None])  # the largest product: 16 rows times 3 x 8 weights
    given = []
    monkeypatch.setattr(gan.backend_used, "set_threads", given.append)
    train.choose_threads(gan)
    train.choose_threads(gan, small=385)
    for size in (1, 3, 9):  # by rows or by columns, each process does its part of a product
        gan.ranks = parallel.Alone()
        gan.ranks.local_size = gan.ranks.size = size
        train.choose_threads(gan, small=384 / size)
        train.choose_threads(gan, small=385 / size)
    assert given == [1, 1, 8, 1, 2, 1, 1, 1]


def test_a_resumed_run_is_shared_by_the_processes_too(fast, monkeypatch):
    assert run("--out", "a") == 0
    ranks = parallel.Alone()
    monkeypatch.setattr(parallel, "connect", lambda: ranks)
    resumed = runs.Run.resumed("a", {"steps": 8})
    resumed.close()
    assert resumed.gan.ranks is ranks


def test_the_picture_of_a_lost_checkpoint_is_drawn_anew(here):
    assert bare(*TINY[:-5], "--steps", "6", "--save-every", "2", "--quiet", "--out", "a") == 0
    path = here / "a" / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:-50])
    step = checkpoint.load("a")[0].step
    runs.Run.resumed("a", {"steps": 8}).close()
    assert step < 6
    assert (here / "a" / "samples.png").read_bytes() == (here / "a" / "samples" / f"{step:08}.png").read_bytes()


def test_data_of_a_user_that_there_is_not(here, capsys):
    assert run("--data", "~nobody-of-this-name/x.csv") == 2
    one_line(capsys, "'~nobody-of-this-name/x.csv'")


def test_a_run_whose_data_are_elsewhere_says_so(fast, monkeypatch, capsys):
    np.savetxt("t.csv", RNG.standard_normal((20, 2)), delimiter=",")
    assert bare(*TINY[:-1], "--data", "t.csv", "--out", "a") == 0
    assert "data t.csv: 20 rows, no header, 2 features" in capsys.readouterr().out
    (fast / "other").mkdir()
    monkeypatch.chdir(fast / "other")
    assert bare("--resume", "../a", "--steps", "8", "--quiet") == 2
    one_line(capsys, "'t.csv' are not there", "where the run was started")
    assert bare("--resume", "../a", "--steps", "8", "--quiet", "--data-dir", "..") == 2
    one_line(capsys, "not for 't.csv'")


def test_a_full_disk_at_the_start_of_a_resumed_run_is_told_with_its_folder(fast, monkeypatch, capsys):
    assert run("--out", "a") == 0

    def full(*args, **options):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(checkpoint, "save", full)
    assert bare("--resume", "a", "--steps", "8", "--quiet") == 2
    one_line(capsys, "a cannot be used (File too large)")


def test_data_too_small_to_be_scored_can_be_trained_on(here, capsys):
    np.save("few.npy", RNG.integers(0, 256, (4, 3, 3), np.uint8))
    assert bare(*TINY[:-1], "--data", "few.npy", "--batch-size", "4") == 0
    assert "not scored" in capsys.readouterr().out
    assert json.loads((here / "runs" / "few" / "scores.json").read_text()) == {}
    with pytest.raises(ValueError):
        metrics.evaluate(load("few.npy"), np.zeros((4, 9)))


def test_mode_collapse_is_said_once_and_with_its_cure(fast, capsys, monkeypatch):
    """Samples that are one point, except in the middle of the run."""
    moons = load("moons").real_samples(1000, seed=0)
    healthy = lambda gan: 20 <= gan.step < 28
    sample = lambda gan, n, **how: moons[:n] if healthy(gan) else 0 * moons[:n]
    monkeypatch.setattr(runs.GAN, "sample", sample)
    options = "--recipe moons --steps 40 --r1 0.2 --lr 0.01 --generator 8 --discriminator 8".split()
    assert bare(*options, "--out", "a") == 0
    said = [line[line.index("step") :] for line in capsys.readouterr().err.splitlines() if "variety" in line]
    assert [line.split(":")[0] for line in said] == ["step 4", "step 20", "step 28", "step 40"]  # the end is said again
    assert said[1].endswith("have the variety of the data again")
    assert "spread is" in said[0] and said[0].endswith("raise --r1 (it is 0.2) or lower --lr (it is 0.01)")
    assert bare(*options, "--quiet", "--out", "b") == 0
    assert capsys.readouterr().err == ""


def test_a_narrower_prior_is_no_collapse(fast, capsys):
    args = "--data gaussian --steps 300 --generator 16,relu --discriminator 16,leaky_relu --lr 0.02".split()
    assert bare(*args, "--truncation", "0.01", "--out", "a") == 0
    assert "variety" not in capsys.readouterr().err
    gan = checkpoint.load("a")[0]
    assert metrics.collapse_signs(load("gaussian"), gan.sample(1000, seed=0))  # as the pictures show them


@pytest.mark.parametrize("steps, looked", [(109, 10), (19, 10), (10, 10), (7, 7), (1, 1)])
def test_variety_is_looked_at_ten_times_and_at_the_end(steps, looked, fast, monkeypatch):
    at = []
    monkeypatch.setattr(metrics, "collapse_signs", lambda data, fake: [])
    monkeypatch.setattr(runs.GAN, "sample", lambda gan, n, **how: at.append(gan.step) or np.zeros(n))
    gan = GAN(steps=steps)
    watcher = SimpleNamespace(gan=gan, data=None, signs=[])
    for gan.step in range(1, steps + 1):
        runs.Run.signs_of_collapse(watcher)
    assert len(at) == looked and at[-1] == steps
