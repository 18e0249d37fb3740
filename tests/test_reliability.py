"""A run can be killed at any moment and lose nothing; no file can hurt the program.

Short samples of benchmarks/reliability.py, and the faults that it does not inject.
"""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import strict_cupy

import train
from minigan import GAN, MiniganError, checkpoint, files, metrics, plots, recipes, runs
from minigan.data import from_array

# Another test may have loaded JAX, which warns of every fork; the processes forked here use NumPy alone.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
reliability = pytest.importorskip("benchmarks.reliability")
ROOT = Path(train.__file__).resolve().parent
TINY = ["--data", "ring", "--generator", "8, relu", "--discriminator", "8, leaky_relu", "--batch-size", "8", "--quiet",
        "--steps", "6", "--report-every", "2", "--save-every", "3", "--backend", "numpy"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder; numbers instead of pictures, and no scores."""
    monkeypatch.chdir(tmp_path)
    leave_out_the_slow_parts(monkeypatch)
    return tmp_path


def leave_out_the_slow_parts(monkeypatch):
    def numbers(path, data, fake, *rest, **more):
        plots._write(path, np.ascontiguousarray(fake).tobytes())

    monkeypatch.setattr(plots, "samples", numbers)
    monkeypatch.setattr(plots, "animate", lambda path, data, frames, *rest, **more: numbers(path, data, frames))
    monkeypatch.setattr(plots, "curves", lambda path, log: plots._write(path, repr(log).encode()))
    monkeypatch.setattr(metrics, "evaluate", lambda data, fake: {"n": len(fake)})


def a_day_back():
    """A clock that somebody sets back a day whenever it is read."""
    days = iter(range(10**9, 0, -86_400))
    return lambda: float(next(days))


def run(*args):
    return train.main([*TINY, *map(str, args)])


def run_on(folder, *args):
    return train.main(["--resume", str(folder), "--quiet", *map(str, args)])


def one_line(capsys, *parts):
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("train.py: "), err
    for part in parts:
        assert part in err, (part, err)


def saved_step(folder):
    return checkpoint.load(folder)[0].step


# ------------------------------------------------------------------------------------------- samples of the scripts
class Some:
    """The arguments of benchmarks/reliability.py."""

    seed, cuts, times, life, files, steps = 1, 2, 4, 30, 250, 1000


@linux
@pytest.mark.parametrize("part", ["resume", "kill", "soak"])
def test_a_sample_of(part, tmp_path, monkeypatch):
    samples = plots.samples
    leave_out_the_slow_parts(monkeypatch)
    if part == "resume":
        monkeypatch.setattr(plots, "samples", samples)
        monkeypatch.setattr(reliability.recipes, "names", lambda: ["ring"])
    good, lines = reliability.PARTS[part](tmp_path, Some)
    if part == "soak":  # too short for its speed and memory to mean anything
        assert any(line.startswith("| 10 |") for line in lines)
    else:
        assert good, "\n".join(lines)


@linux
def test_damaged_and_hostile_files(tmp_path, monkeypatch):
    monkeypatch.setattr(reliability, "bombs", lambda make=reliability.bombs: make(megabytes=100))
    good = reliability.Files(tmp_path)
    results, megabytes = reliability.try_many(good, Some.seed, range(Some.files))
    assert [result for result in results if result[3] not in ("right", "refused")] == []
    assert {kind for _, kind, *_ in results} == good.kinds.keys()
    assert {"right", "refused"} == {outcome for *_, outcome, _ in results} and megabytes < 500


# ------------------------------------------------------------------------------------------- checkpoints by the clock
def test_a_checkpoint_every_so_many_seconds(here, monkeypatch):
    """By a clock that goes evenly, whatever the time of day does."""
    now, steps = [1000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", a_day_back())
    train_step, save = GAN.train_step, checkpoint.save

    def step(gan):
        now[0] += 10
        train_step(gan)

    def saving(folder, gan, *args):
        steps.append(gan.step)
        save(folder, gan, *args)

    monkeypatch.setattr(GAN, "train_step", step)
    monkeypatch.setattr(checkpoint, "save", saving)
    assert run("--save-every", "25s", "--steps", "11", "--out", "a") == 0
    assert steps == [3, 6, 9, 11]
    assert json.loads(Path("a/config.json").read_text())["save_every"] == "25s"
    assert run("--save-every", "0.5s", "--steps", "3", "--out", "b") == 0
    assert steps[4:] == [1, 2, 3]


def test_a_run_saved_by_the_clock_is_the_same_run(here):
    assert run("--save-every", "0.000001s", "--out", "a") == 0
    assert run("--save-every", "2", "--out", "b") == 0
    assert run("--out", "c", "--steps", "6", "--save-every", "1000s") == 0
    one, *others = (np.load(here / name / checkpoint.NAME) for name in "abc")
    for other in others:
        assert all(one[name].tobytes() == other[name].tobytes() for name in one.files)
        other.close()
    one.close()
    assert sorted(os.listdir("c/samples")) == ["00000006.png"] and len(os.listdir("a/samples")) == 6


def test_the_progress_bar_survives_a_clock_that_is_set(here, monkeypatch, capsys):
    import tqdm.std

    monkeypatch.setattr(tqdm.std, "time", a_day_back())
    assert train.main([arg for arg in TINY if arg != "--quiet"]) == 0
    assert "6/6" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value", ["0s", "0.0s", "-3s", "s", "1e3s", "infs", "nans", "5m", "0", "2.5", "٣s", "9" * 99 + "s"]
)
def test_no_time_between_checkpoints(value, here, capsys):
    assert run(f"--save-every={value}") == 2
    one_line(capsys, "save-every is", value, "seconds")
    assert not os.listdir()


# ------------------------------------------------------------------------------------------- two runs in one folder
HOLD = "import sys; from minigan import files; files.lock(sys.argv[1]); print('locked', flush=True); sys.stdin.read()"


@contextlib.contextmanager
def holder(folder):
    """Another process that has locked a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout.readline() == b"locked\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_run_in_a_folder_is_refused(here, capsys):
    reliability.cut([*TINY, "--out", "a"], 4, signal.SIGINT)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    with holder(here / "a"):
        for args in (["--resume", "a", "--quiet"], [*TINY, "--out", "a"]):
            assert train.main(args) == 2
            one_line(capsys, "a is in use by another run")
    assert before == {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    assert run_on("a") == 0  # the holder was killed, and its lock with it
    Path("new").mkdir()
    with holder(here / "new"):
        assert run("--out", "new") == 2
    one_line(capsys, "new is in use by another run")
    assert not os.listdir("new") and run("--out", "new") == 0


def test_a_run_lets_go_of_its_folder_however_it_ends(here, capsys):
    assert run("--out", "a") == 0
    assert run("--out", "a") == 2 and run_on("a") == 2 and run_on("a", "--steps", 3) == 2
    assert run_on("a", "--steps", 9) == 0
    assert run("--lr", "9e29", "--steps", "90", "--out", "b") == 2
    for folder in "ab":
        files.lock(folder)()


class NoLocks:
    """The module that Windows has in fcntl's place."""

    LK_NBLCK, held = 2, False

    def locking(self, f, mode, size):
        if self.held:
            raise OSError(errno.EACCES, "Permission denied")
        self.held = True


def test_where_folders_cannot_be_locked_a_file_is(tmp_path, monkeypatch):
    locks, os_open = NoLocks(), os.open
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", locks)

    def open_no_folder(path, *args):
        if Path(path).is_dir():
            raise PermissionError
        return os_open(path, *args)

    monkeypatch.setattr(os, "open", open_no_folder)
    unlock = files.lock(tmp_path)
    assert os.listdir(tmp_path) == [".lock"]
    with pytest.raises(MiniganError, match="in use by another run"):
        files.lock(tmp_path)
    unlock()


def test_where_nothing_can_be_locked_training_goes_on(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    files.lock(tmp_path)()


# ------------------------------------------------------------------------------------------- signals
@linux
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigint_stops_at_once(first, here):
    """In the middle of a step, losing what came after the last checkpoint."""
    read, write = os.pipe()

    def slow(train_step):
        def step(gan):
            train_step(gan)
            if gan.step == 5:
                os.write(write, b"slow")
                time.sleep(60)

        return step

    pid = os.fork()
    if pid == 0:
        with reliability.patched(GAN, "train_step", slow):
            run("--out", "a")
        os._exit(99)
    assert os.read(read, 9) == b"slow"
    os.kill(pid, first)
    time.sleep(0.3)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # the first waits for the step
    start = time.monotonic()
    os.kill(pid, signal.SIGINT)
    _, status = os.waitpid(pid, 0)
    assert time.monotonic() - start < 2 and os.WTERMSIG(status) == signal.SIGINT
    os.close(read), os.close(write)
    assert saved_step("a") == 3 and run_on("a") == 0


# ------------------------------------------------------------------------------------------- disks and folders
@pytest.fixture
def small_disk(tmp_path):
    """A folder with a file system of its own; a function that mounts it again with other options."""
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root can mount a file system")
    libc, folder = ctypes.CDLL(None, use_errno=True), tmp_path / "disk"
    folder.mkdir()

    def mount(options, flags=0):
        return libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", flags, options.encode())

    if mount("size=160k"):
        pytest.skip(f"a file system cannot be mounted here ({os.strerror(ctypes.get_errno())})")
    yield folder, mount
    libc.umount2(os.fsencode(folder), 2)


REMOUNT, READ_ONLY = 32, 1


def test_a_disk_that_is_full_or_read_only(small_disk, here, capsys):
    disk, mount = small_disk
    args = ["--steps", "40", "--save-every", "1", "--report-every", "1"]
    assert run(*args, "--out", "whole") == 0
    assert run(*args, "--out", disk / "part") == 2
    one_line(capsys, "No space left on device", "mend that, then go on with: python train.py --resume")
    step = saved_step(disk / "part")
    assert 1 <= step < 40 and not list(disk.rglob("*.part"))
    assert run_on(disk / "part") == 2  # still full
    one_line(capsys, "No space left on device")
    assert saved_step(disk / "part") == step
    assert not mount("size=160k", REMOUNT | READ_ONLY)
    assert run_on(disk / "part") == 2
    one_line(capsys, "Read-only file system")
    assert run("--out", disk / "new") == 2
    one_line(capsys, "Read-only file system")
    assert not mount("size=9m", REMOUNT)
    assert run_on(disk / "part") == 0
    assert reliability.differences(here / "whole", disk / "part") == []


def test_a_folder_that_vanishes_before_a_checkpoint(here, monkeypatch, capsys):
    save = checkpoint.save

    def vanish(folder, *args):
        shutil.rmtree(folder)
        save(folder, *args)

    monkeypatch.setattr(checkpoint, "save", vanish)
    assert run("--out", "a") == 2
    one_line(capsys, "a/checkpoint.npz", "No such file or directory", "at step 3")


def test_a_damaged_checkpoint_does_not_replace_the_one_before(here, monkeypatch):
    """Resumed from the one before, and killed between the two renames of the next save: that one is still there."""
    reliability.cut([*TINY, "--out", "a", "--save-every", "2"], 5, "killed")
    Path("a", checkpoint.NAME).write_bytes(b"damaged")
    replace = os.replace

    def crash(source, target):
        if Path(target).name == checkpoint.NAME:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        assert run_on("a") == 130
    assert saved_step("a") == 2 and run_on("a") == 0
    assert [saved_step("a"), checkpoint._read(Path("a", checkpoint.PREVIOUS))[1]["step"]] == [6, 4]


def test_pictures_and_leftovers_of_later_steps_go(here):
    assert run("--out", "whole") == 0
    reliability.cut([*TINY, "--out", "a", "--save-every", "2"], 5, "killed")
    Path("a", checkpoint.NAME).unlink()  # back to step 2
    Path("a/samples/00000002.png").unlink()
    for left in ("a/checkpoint.npz.part", "a/.samples.png.7.tmp", "a/samples/00000004.png.part"):
        Path(left).touch()
    run_ = runs.Run.resumed("a", {})
    run_.close()
    assert os.listdir("a/samples") == ["00000002.png"]
    assert sorted(os.listdir("a")) == ["config.json", "metrics.csv", checkpoint.PREVIOUS, "samples", "samples.png"]


def test_more_steps_are_saved_before_anything_else(here, monkeypatch, capsys):
    """So that a kill in the next moment, or a damaged number in config.json, does not make it another run."""
    assert run("--out", "a") == 0
    assert run("--out", "b", "--steps", "6") == 0
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "rewind", lambda run: signal.raise_signal(signal.SIGINT))
        assert run_on("a", "--steps", "9") == 130
    capsys.readouterr()
    assert run_on("a") == 0
    assert "config.json has steps 6 and the checkpoint 9; going on with the latter" in capsys.readouterr().err
    assert run_on("b", "--steps", "9") == 0
    assert reliability.differences(here / "a", here / "b") == []


def test_a_finished_run_without_a_log_has_no_curves(here, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "draw_curves", lambda run: signal.raise_signal(signal.SIGINT))
        assert run("--out", "a") == 130
    Path("a/metrics.csv").write_text("")
    assert run_on("a") == 0
    assert Path("a/scores.json").exists() and not Path("a/curves.png").exists()


# ------------------------------------------------------------------------------------------- what files may ask for
@linux
@pytest.mark.parametrize("name", ["config.json", "metrics.csv", checkpoint.NAME, "data.npy"])
def test_what_never_ends_is_not_read(name, here, capsys):
    np.save("data.npy", np.arange(60.0).reshape(20, 3))
    reliability.cut([*TINY, "--out", "a", "--data", "data.npy"], 4, "killed")
    path = here / name if name == "data.npy" else here / "a" / name
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        path.unlink()
        make(path)
        assert run_on("a") == 2
        one_line(capsys, name, "is not a file")


def test_no_link_leads_out_of_the_folder(here, capsys):
    reliability.cut([*TINY, "--out", "a"], 4, signal.SIGINT)
    Path("outside").mkdir()
    Path("outside/00000099.png").touch()
    Path("outside/mine").write_text("mine")
    for name in ("metrics.csv", "checkpoint.npz.part", "config.json.part"):
        Path("a", name).unlink(missing_ok=True)
        Path("a", name).symlink_to(here / "outside" / "mine")
    shutil.move("a/samples", "samples")
    Path("a/samples").symlink_to(here / "outside")
    assert run_on("a") == 2
    one_line(capsys, "a/samples is a link")
    Path("a/samples").unlink()
    assert run_on("a") == 0
    assert sorted(os.listdir("outside")) == ["00000099.png", "mine"] and Path("outside/mine").read_text() == "mine"


def forged(folder, change):
    """The checkpoint with its meta changed, and the right checksum."""
    with np.load(folder / checkpoint.NAME) as file:
        arrays = {name: file[name] for name in file.files if name != "checksum"}
    meta = json.loads(bytes(arrays["meta"]))
    change(meta, arrays)
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    arrays["checksum"] = np.frombuffer(checkpoint._checksum(arrays), np.uint8)
    np.savez(folder / checkpoint.NAME, **arrays)


@pytest.mark.parametrize("recipe", [r for r in recipes.names() if "mnist" in recipes.load(r)["data"]])
def test_every_recipe_of_mnist_can_be_cut_and_resumed_without_a_download(recipe, here):
    args = [a for a in reliability.tiny(recipe, "sgd", here, np.random.default_rng(0)) if a[:7] != "--steps"]
    assert train.main([*args, "--steps=1", "--out", "a"]) == 0


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda meta, arrays: meta["options"].update(generator="99999999, relu, 9999999"), "'theta_G' is float32"),
        (lambda meta, arrays: meta["options"].update(discriminator="maxout 99999x99999"), "'theta_D' is float32"),
        (lambda meta, arrays: meta["options"].update(latent_dim=2**60), "'theta_G' is float32"),
        (lambda meta, arrays: meta["data"].update(features=2**40), "'theta_G' is float32"),
        (lambda meta, arrays: meta["options"].update(batch_size=2**50), "smaller report-every or batch-size"),
        (lambda meta, arrays: meta["options"].update(batch_size=2**24, report_every=1), "bytes of memory"),
        (lambda meta, arrays: meta["options"].update(report_every=2**40), "smaller report-every"),
        (lambda meta, arrays: meta["data"].update(image_shape=[2**40, 2**40]), "do not have 3 pixels"),
        (lambda meta, arrays: meta["data"].pop("features"), "KeyError"),
        (lambda meta, arrays: meta["random"].update(order=[]), "does not make sense"),
        (lambda meta, arrays: meta.update(powers=[]), "does not make sense"),
        (lambda meta, arrays: meta.update(step=-1), "step is -1"),
        (lambda meta, arrays: meta.update(position=10**9), "position is 1000000000"),
        (lambda meta, arrays: arrays.update(order=np.arange(5)), "'order' is int64"),
        (lambda meta, arrays: arrays.update(order=np.zeros((20, 3))), "'order' is float64"),
        (lambda meta, arrays: arrays.update(shift=np.zeros(10**6, np.float32)), "'shift' is float32"),
        (lambda meta, arrays: arrays.update({"/etc/x": np.zeros(3)}), "it holds /etc/x"),
        (lambda meta, arrays: arrays.update(record_D=np.zeros((1, 7), np.float32)), "a record has 7 logits"),
        (lambda meta, arrays: arrays.update(record_G=np.zeros((1, 0), np.float32)), "a record has 0 logits"),
        (lambda meta, arrays: arrays.update(record_G=np.zeros((2, 4), np.float32)), "'record_G' is float32"),
        (lambda meta, arrays: arrays.update(record_G=np.zeros(1, np.float32)), "'record_G' is float32"),
        (lambda meta, arrays: arrays.update(record_D=np.zeros((1, 6))), "'record_D' is float64"),
    ],
)
def test_a_forged_checkpoint_asks_in_vain(change, part, tmp_path, monkeypatch):
    data = from_array(np.random.default_rng(0).standard_normal((20, 3)), name="table")
    options = dict(generator="8, relu", discriminator="8, relu", batch_size=4, report_every=4, backend="numpy")
    gan = GAN(**options).build(data)
    gan.train_step()
    checkpoint.save(tmp_path, gan)
    forged(tmp_path, change)
    build = GAN.build
    asked = []
    monkeypatch.setattr(GAN, "build", lambda gan, *args, **more: asked.append(gan) or build(gan, *args, **more))
    with pytest.raises(MiniganError) as raised:
        checkpoint.load(tmp_path, data)
    assert part in str(raised.value) and "\n" not in str(raised.value)
    assert not asked or gan.D.theta.size == asked[0].D.theta.size  # nothing was built of other sizes


def test_going_on_with_another_backend_says_that_it_is_not_bit_for_bit(here, capsys):
    def from_gpu(meta, arrays):
        meta["backend"] = "cupy"
        meta["random"] |= dict.fromkeys(("stream", "noise", "dropout"))  # CuPy does not tell them

    reliability.cut([*TINY, "--out", "a"], 4, signal.SIGINT)
    capsys.readouterr()
    forged(here / "a", from_gpu)
    assert run_on("a") == 0
    one_line(capsys, "saved on cupy, going on with numpy: from here on not bit for bit")
    assert saved_step("a") == 6


def test_going_on_on_a_gpu_says_that_it_is_not_bit_for_bit(here, capsys, monkeypatch):
    strict_cupy.install(monkeypatch)
    reliability.cut([*TINY, "--backend", "cupy", "--out", "a"], 4, signal.SIGINT)
    capsys.readouterr()
    assert run_on("a") == 0
    one_line(capsys, "saved on cupy, going on with cupy: from here on not bit for bit")
    assert saved_step("a") == 6
