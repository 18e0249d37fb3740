"""python -m minigan: samples in every format, scores, and one sentence for every mistake."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minigan.__main__ as cli
import minigan.gradcheck
import train
from minigan import checkpoint, load, metrics
from minigan.classifier import Classifier

ROOT = Path(train.__file__).resolve().parent
TINY = [
    "--generator", "8, relu", "--discriminator", "8, leaky_relu", "--latent-dim", "4", "--batch-size", "8",
    "--steps", "25", "--report-every", "25", "--save-every", "15", "--quiet",
]  # fmt: skip
COLUMNS = ["age, in years", 'the "big" one', "größe Ω"]


def main(*args):
    """The exit code of python -m minigan with these arguments."""
    try:
        return cli.main([str(arg) for arg in args])
    except SystemExit as stop:  # argparse
        return stop.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with five trained runs, and the data of those that have files."""
    folder = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 256, (30, 4, 4), np.uint8))
    np.save(folder / "few.npy", rng.integers(0, 256, (8, 3, 3, 3), np.uint8))
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *(rng.standard_normal((40, 3)) * [1, 10, 0.01] + [50, 1000, -3])])
    here = os.getcwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:  # what this file does not look at and takes the time
        for slow in ("draw_curves", "draw_samples", "score"):
            patch.setattr(train.Run, slow, lambda run: [])
        for data in ("digits", "ring", "images.npy", "few.npy", "table.csv"):
            assert train.main([*TINY, "--data", data]) == 0
        assert train.main([*TINY, "--data", "gaussian", "--dtype", "float64"]) == 0
    os.chdir(here)
    return folder


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    """A copy of them to work in; the runs are in runs/."""
    shutil.copytree(trained, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w" / "runs"


@pytest.fixture
def at_runs(trained, monkeypatch):
    """The folder itself, for tests that write nothing."""
    monkeypatch.chdir(trained)
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    yield trained / "runs"
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def one_line(capsys, *parts):
    """Standard error is one sentence that holds all the parts, and standard output is empty."""
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"minigan( \w+)?: [^\n]+\n", err), err
    for part in parts:
        assert part in err, (part, err)


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, np.array(rows, np.float32)


# ------------------------------------------------------------------------------------------- sample
@pytest.mark.parametrize("name, features", [("digits", 64), ("ring", 2), ("gaussian", 1), ("table", 3), ("images", 16)])
def test_sample_writes_the_same_numbers_as_npy_and_csv(name, features, runs, capsys):
    for suffix in ("npy", "csv"):
        assert main("sample", runs / name, "-n", 7, "--seed", 5, "-o", f"out.{suffix}") == 0
        assert f"7 samples of {runs / name} (step 25) are in out.{suffix}\n" == capsys.readouterr().out
    x = np.load("out.npy", allow_pickle=False)
    assert x.shape == (7, features) and x.dtype == np.float32 and np.isfinite(x).all()
    header, rows = read_csv("out.csv")
    np.testing.assert_array_equal(rows, x)
    assert header == (COLUMNS if name == "table" else [f"x{i}" for i in range(features)])

    gan, _, _ = checkpoint.load(runs / name)
    np.testing.assert_array_equal(x, gan.sample(7, seed=5))
    if name in ("digits", "images"):
        assert 0 <= x.min() < x.max() <= 1


def test_samples_of_a_table_are_in_its_own_units(runs):
    assert main("sample", runs / "table", "-n", 500, "-o", "out.csv") == 0
    header, x = read_csv("out.csv")
    real = load("table.csv").X
    # after 25 steps G is still near its start, which has mean 0 and about unit size in the network's units
    assert (np.abs(x.mean(0) - real.mean(0)) < 2 * real.std(0)).all()
    assert (x.std(0) > 0.05 * real.std(0)).all() and (x.std(0) < 20 * real.std(0)).all()


def test_truncated_samples_and_their_scores(runs, capsys):
    assert main("sample", runs / "digits", "-n", 7, "--truncation", 0.5, "-o", "out.npy") == 0
    gan = checkpoint.load(runs / "digits")[0]
    np.testing.assert_array_equal(np.load("out.npy"), gan.sample(7, seed=0, truncation=0.5))
    scores = []
    for truncation in ("0.2", "1"):
        capsys.readouterr()
        assert main("evaluate", runs / "digits", "--truncation", truncation) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] != scores[1]
    assert main("sample", runs / "digits", "--truncation", 2, "-o", "out.npy") == 2
    one_line(capsys, "truncation is 2.0; it must be a number above 0, 1 at most")


def test_the_seed_of_a_sample(runs):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert main("sample", runs / "digits", "--seed", seed, "-o", f"{out}.npy", "-n", 9) == 0
        assert main("sample", runs / "digits", "--seed", seed, "-o", f"{out}.png", "-n", 9) == 0
    assert Path("a.npy").read_bytes() == Path("b.npy").read_bytes()
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert (np.load("a.npy") != np.load("c.npy")).mean() > 0.9
    assert Path("a.png").read_bytes() != Path("c.png").read_bytes()
    assert main("sample", runs / "digits", "-n", 3, "-o", "d.npy") == 0
    assert main("sample", runs / "digits", "-n", 3, "-o", "e.npy", "--seed", 0) == 0
    assert Path("d.npy").read_bytes() == Path("e.npy").read_bytes()


def test_samples_come_from_the_average_unless_the_last_weights_are_asked_for(runs):
    gan, _, _ = checkpoint.load(runs / "digits")
    assert main("sample", runs / "digits", "-o", "a.npy") == 0
    assert main("sample", runs / "digits", "-o", "b.npy", "--last") == 0
    a, b = np.load("a.npy"), np.load("b.npy")
    assert a.shape == (64, 64) and (a != b).mean() > 0.9
    np.testing.assert_array_equal(b, gan.sample(64, seed=0, average=False))


@pytest.mark.parametrize(
    "name, n", [("digits", 64), ("digits", 1), ("few", 200), ("ring", 30), ("gaussian", 1), ("table", 2)]
)
def test_sample_draws_a_picture(name, n, runs):
    assert main("sample", runs / name, "-n", n, "-o", "out.PNG") == 0
    with Image.open("out.PNG") as image:
        assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 3
    assert [file for file in os.listdir(".") if "out" in file] == ["out.PNG"]


def test_samples_png_is_the_default(runs):
    assert main("sample", "runs/images") == 0
    with Image.open("samples.png") as image:
        assert image.format == "PNG"


def test_sampling_does_not_need_the_data(runs, capsys):
    """Only the pictures that show real data beside the samples do."""
    for file in ("images.npy", "table.csv", "few.npy"):
        os.remove(file)
    for name, outs in (("table", ["a.npy", "a.csv"]), ("images", ["b.npy", "b.csv", "b.png"]), ("few", ["c.png"])):
        for out in outs:
            assert main("sample", runs / name, "-o", out) == 0 and Path(out).stat().st_size
    assert read_csv("a.csv")[0] == COLUMNS
    capsys.readouterr()
    assert main("sample", runs / "table", "-o", "d.png") == 2
    one_line(capsys, "table.csv")
    assert not Path("d.png").exists()


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_data_that_have_moved(command, runs, capsys):
    Path("table.csv").rename("moved.csv")
    assert main(command, runs / "table") == 2
    one_line(capsys, "'table.csv' are not there", "say where they are now with --data PATH")
    for other in ("digits", "images.npy"):
        assert main(command, runs / "table", "--data", other) == 2
        one_line(capsys, f"'{other}' is not what the run in")
    assert main(command, runs / "table", "--data", "moved.csv") == 0
    assert Path("samples.png").exists() == (command == "sample")
    if command == "sample":
        assert main(command, runs / "table", "--data", "moved.csv", "-o", "moved.csv") == 2
        capsys.readouterr()
        assert Path("moved.csv").read_text(encoding="utf-8").startswith('"age, in years"')


def test_a_picture_beside_other_data_is_refused(runs, capsys):
    Path("table.csv").write_text("1,2\n" * 10)
    assert main("sample", runs / "table", "-o", "a.png") == 2
    one_line(capsys, "table.csv", "not what the run")
    assert not Path("a.png").exists()


def test_the_same_samples_on_a_machine_without_the_gpu(runs):
    """A run that asked for CuPy can be sampled and scored where there is none."""
    gan, extra, _ = checkpoint.load(runs / "images", load("images.npy"))
    gan.backend = "cupy"
    checkpoint.save(runs / "images", gan, extra)
    assert main("sample", runs / "images", "-o", "a.npy") == 0
    assert main("evaluate", runs / "images") == 0


@pytest.mark.parametrize("name", ["digits", "ring"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(name, runs, capsys):
    path = runs / name / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:-100])
    for command in (["sample", "-o", "a.npy"], ["evaluate"]):
        assert main(command[0], runs / name, *command[1:]) == 0
        out, err = capsys.readouterr()
        assert "step 15" in out
        assert re.fullmatch(r"minigan: [^\n]*checkpoint.npz is damaged [^\n]*using the checkpoint before it\n", err)
    damaged = runs / name / checkpoint.PREVIOUS
    damaged.write_bytes(b"")
    for command in (["sample", "-o", "b.npy"], ["evaluate"]):
        assert main(command[0], runs / name, *command[1:]) == 2
        one_line(capsys, "checkpoint.npz", "previous-checkpoint.npz")
    assert not Path("b.npy").exists()


def test_a_picture_says_how_many_it_holds(at_runs, tmp_path, capsys):
    for n, many in ((100, "100 samples"), (150, "the first 100 of 150 samples")):
        assert main("sample", at_runs / "digits", "-n", n, "-o", tmp_path / "a.png") == 0
        assert capsys.readouterr().out.startswith(f"{many} of ")


# ------------------------------------------------------------------------------------------- evaluate
@pytest.mark.parametrize(
    "name, measures",
    [
        ("digits", ["samples scored  *1797", "precision", "recall", "density", "coverage", "classes present", "label"]),
        ("ring", ["samples scored  *2500", "modes found  *[0-8] of 8", "within 3 sigma", "reverse KL"]),
        ("gaussian", ["samples scored  *10000", "JSD"]),
        ("table", ["samples scored  *40", "precision", "coverage .*real against real"]),
    ],
)
def test_evaluate_prints_the_measures_that_fit(name, measures, at_runs, capsys):
    assert main("evaluate", at_runs / name) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(f"{at_runs / name}, step 25 of 25\n")
    for measure in measures:
        assert re.search(rf"^ *{measure}", out, re.M), (measure, out)


def test_evaluate_judges_images_that_have_held_out_labels_by_a_classifier(at_runs, monkeypatch, capsys):
    data = load("digits")
    data.X_test, data.labels_test = data.X[::3], data.labels[::3]
    monkeypatch.setattr(cli.runs, "load", lambda *args: data)
    monkeypatch.setattr(cli, "Classifier", lambda: Classifier("64, relu", steps=300))
    monkeypatch.setitem(metrics.PUBLISHED, "digits", {"parzen": "somebody 7"})
    assert main("evaluate", at_runs / "digits") == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, judge, *lines = out.splitlines()
    share = re.fullmatch(r"judged by a classifier trained for it in \d+ s: (\d+\.\d)% of held-out images right", judge)
    assert first.endswith("step 25 of 25") and float(share[1]) > 90
    for measure in (
        "samples scored  *1797", "precision .*real against real", "classes present  *[0-9]+ of 10",
        "label total variation .*held-out images", "accepted at p >= 0.9 .*held-out images [0-9.]+$",
        "Frechet distance .*training images [0-9.]+$", "distance to training",
        "Parzen LL .*[+]- [0-9.]+ at sigma [0-9.]+, training images [0-9.]+, somebody 7$",
    ):  # fmt: skip
        assert any(re.match(measure, line) for line in lines), (measure, out)


def test_evaluate_depends_on_its_seed_and_the_weights(at_runs, capsys):
    printed = []
    for args in ([], [], ["--seed", 1], ["--last"]):
        assert main("evaluate", at_runs / "gaussian", *args) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and len(set(printed)) == 3


def test_evaluate_finds_the_data_in_the_given_folder(runs, monkeypatch):
    config = runs / "digits" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"data": "mnist", "data_dir": "old"}))
    asked = []
    monkeypatch.setattr(cli.runs, "load", lambda *args: asked.append(args) or load("digits"))
    assert main("evaluate", runs / "digits") == 0
    assert main("evaluate", runs / "digits", "--data-dir", "new") == 0
    assert asked == [("mnist", "old", None, None), ("mnist", "new", None, None)]


def test_evaluate_refuses_other_data_and_too_little(runs, capsys):
    X = np.load("images.npy")
    np.save("images.npy", X[::-1])
    assert main("evaluate", runs / "images") == 2
    one_line(capsys, "images.npy", "not what the run")
    os.remove("images.npy")
    assert main("evaluate", runs / "images") == 2
    one_line(capsys, "images.npy")
    np.save("five.npy", X[:5])
    assert train.main([*TINY, "--data", "five.npy", "--batch-size", "5", "--out", "five"]) == 0
    capsys.readouterr()
    assert main("evaluate", "five") == 2
    one_line(capsys, "five", "cannot be evaluated", "5")


# ------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    "args, part",
    [
        ("", "COMMAND"), ("paint", "'paint'"), ("sample", "RUN"), ("evaluate", "RUN"), ("--nonsense", "COMMAND"),
        ("sample nowhere", "nowhere"), ("sample images.npy", "images.npy"), ("sample .", "checkpoint.npz"),
        ("sample runs/digits -n 0", "-n is 0"), ("sample runs/digits -n -1", "-n is -1"),
        ("sample runs/digits -n 1.5", "'1.5'"), ("sample runs/digits -n many", "'many'"),
        ("sample runs/digits -n 99999999999999999999 -o a.npy", "99999999999999999999"),
        ("sample runs/digits --seed -1", "--seed is -1"), ("sample runs/digits --seed x", "'x'"),
        ("sample runs/digits -o out.txt", "out.txt"), ("sample runs/digits -o out", "out"),
        ("sample runs/digits -o=", "''"), ("sample runs/digits -o images.npy/a.npy", "images.npy/a"),
        ("sample runs/digits -o nowhere/a.npy", "nowhere/a.npy"),
        ("sample runs/digits -o nowhere/a.csv", "nowhere/a.csv"),
        ("sample runs/digits -o nowhere/a.png", "nowhere/a.png"),
        ("sample runs/ring -o nowhere/a.png", "nowhere/a.png"), ("sample runs/digits -o folder.npy", "folder.npy"),
        ("sample runs/digits -o folder.png", "folder.png"), ("sample runs/digits -o " + "x" * 300 + ".npy", "xxx.npy"),
        ("sample runs/images -o images.npy", "images.npy' belongs to the data"),
        ("sample runs/table -o runs/../table.csv", "table.csv' belongs to the data"),
        ("sample runs/digits --nonsense", "--nonsense"), ("sample runs/digits -o runs/ring/metrics.csv", "metrics.csv"),
        ("evaluate runs/digits --data-dir x", "not for 'digits'"),
        ("evaluate nowhere", "nowhere"), ("evaluate .", "config.json"), ("evaluate runs/digits --seed -3", "-3"),
        ("evaluate runs/digits --data-dir", "--data-dir"), ("evaluate images.npy", "images.npy"),
        ("gradcheck --networks 0", "0"), ("gradcheck --networks x", "'x'"), ("gradcheck --seed -1", "-1"),
        ("gradcheck --backend torch", "'torch'"),
    ],
    ids=lambda text: re.sub("x{9,}", "xx", text),
)  # fmt: skip
def test_bad_input_is_one_sentence_and_leaves_nothing(args, part, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    for name in ("folder.npy", "folder.png"):
        (trained / name).mkdir(exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    assert main(*args.split()) == 2
    one_line(capsys, part)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", [["sample", "-o", "a.png"], ["evaluate"]])
@pytest.mark.parametrize("edit", [None, "", "[1]", '{"data": 5}', "{}", '{"data": "ring", "image_size": "x"}', "\0"])
def test_a_damaged_config_is_one_sentence(command, edit, runs, capsys):
    path = runs / "ring" / "config.json"
    path.unlink() if edit is None else path.write_text(edit)
    assert main(command[0], runs / "ring", *command[1:]) == 2
    one_line(capsys, "config.json")
    assert not Path("a.png").exists()


def test_a_failed_write_leaves_the_old_file(runs, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    for out, failing in (("a.npy", (np, "save")), ("a.csv", (np, "savetxt")), ("a.png", (os, "replace"))):
        assert main("sample", runs / "digits", "-o", out) == 0
        before = Path(out).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(*failing, full)
            capsys.readouterr()
            assert main("sample", runs / "digits", "-o", out, "--seed", 1) == 2
        one_line(capsys, out, "No space left on device")
        assert Path(out).read_bytes() == before
    monkeypatch.setattr(np, "save", lambda *args: (_ for _ in ()).throw(OSError("12 requested and 3 written")))
    assert main("sample", runs / "digits", "-o", "a.npy") == 2  # as NumPy says it
    one_line(capsys, "a.npy", "12 requested and 3 written")
    assert sorted(file for file in os.listdir(".") if file.strip(".").startswith("a.")) == ["a.csv", "a.npy", "a.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
def test_output_that_cannot_be_written_is_one_sentence(runs):
    command = [sys.executable, "-m", "minigan", "evaluate", runs / "ring"]
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"minigan: the output cannot be used \(No space left on device\)[^\n]+\n", done.stderr)


def test_more_samples_than_memory(runs, monkeypatch, capsys):
    def sample(self, n, *options):
        raise MemoryError(f"Unable to allocate an array of {n} rows")

    monkeypatch.setattr(cli.checkpoint.GAN, "sample", sample)
    assert main("sample", runs / "digits", "-n", 10**9, "-o", "a.npy") == 2
    one_line(capsys, "not enough memory", "1000000000")


def test_a_picture_among_the_images_that_were_learnt_is_refused(tmp_path, monkeypatch):
    """It would be one of them for the next run, and the run itself would no longer find its data unchanged."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "run").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "photos", tmp_path / "photos" / "run"):
        for name in ("config.json", "metrics.csv"):  # only below the images' folder it makes a difference
            (folder / name).write_text("")
    (tmp_path / "elsewhere.png").write_text("")
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    inside = ("photos/a.png", "photos/b/a.png", "photos/a.PNG", "photos/link.png")
    for data in ("photos", str(tmp_path / "photos")):
        assert all(cli.runs.is_of_the_data(path, data) for path in inside)
        for other in ("photos/run/a.png", "photos/a.npy", "a.png"):  # those of runs are never read
            assert not cli.runs.is_of_the_data(other, data)
    assert not cli.runs.is_of_the_data("digits/a.png", "digits")
    monkeypatch.chdir(tmp_path / "photos")  # from where 'photos' is not to be seen
    (tmp_path / "photos" / "own.npy").write_text("")
    assert cli.runs.is_of_the_data("a.png", "photos") and cli.runs.is_of_the_data("own.npy", "data/own.npy")
    assert not cli.runs.is_of_the_data("../a.png", "photos") and not cli.runs.is_of_the_data("new.npy", "data/own.npy")


def test_a_package_that_is_missing(runs, monkeypatch, capsys):
    def samples(*args, **options):
        import missing_package  # noqa: F401

    monkeypatch.setattr(cli.plots, "samples", samples)
    assert main("sample", runs / "digits", "-o", "a.png") == 2
    one_line(capsys, "the package missing_package is not installed; pip install -r requirements.txt")
    assert not Path("a.png").exists()


# ------------------------------------------------------------------------------------------- the rest
@pytest.mark.parametrize("right", [True, False])
def test_gradcheck(right, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(minigan.gradcheck, "run", lambda *args: asked.append(args) or [])
    monkeypatch.setattr(minigan.gradcheck, "print_table", lambda checks: right)
    assert main("gradcheck", "--networks", "3", "--seed", "4") == (0 if right else 1)
    assert asked[0][:2] == (3, 4) and asked[0][2].name == "numpy"
    assert "numpy" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["sample"], ["evaluate"], ["gradcheck"], ["claims"]])
def test_help_tells_every_option(command, capsys):
    assert main(*command, "--help") == 0
    out, err = capsys.readouterr()
    assert err == "" and out.isascii()
    p = cli.parser()
    commands = p._subparsers._group_actions[0].choices
    actions = (commands[command[0]] if command else p)._actions
    for action in actions:
        name = (action.option_strings or [action.metavar])[-1]
        assert name in out and (action.help or not command), name
    if not command:
        assert list(commands) == ["sample", "evaluate", "gradcheck", "claims"] and all(name in out for name in commands)


def test_the_module_runs_from_anywhere(at_runs, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "minigan", "sample", at_runs / "ring", "-n", "3", "-o", "a.csv"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "" and "3 samples of" in done.stdout
    assert read_csv(tmp_path / "a.csv")[1].shape == (3, 2)
