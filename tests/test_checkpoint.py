"""Checkpoints: the whole state, exactly, and no damage that goes unnoticed."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from minigan import GAN, MiniganError, checkpoint
from minigan.data import from_array, load
from minigan.inference import Encoder

NAME, PREVIOUS = checkpoint.NAME, checkpoint.PREVIOUS
TINY = dict(generator="8, relu", discriminator="8, leaky_relu", latent_dim=4, batch_size=8, steps=20, report_every=4)


def table():
    return from_array(np.random.default_rng(3).standard_normal((30, 3)) * [1, 5, 10], name="table")


def trained(steps, data=None, **options):
    gan = GAN(**{"backend": "numpy", **TINY, **options}).build(data or table())
    for _ in range(steps):
        gan.train_step()
    return gan


def state(gan):
    """Everything that training changes."""
    optimizers = [*gan.optimizer_G.state.values(), *gan.optimizer_D.state.values()]
    recorded = gan.step % gan.report_every
    arrays = [
        gan.G.theta,
        gan.D.theta,
        gan.averaged.flat,
        *optimizers,
        gan.record_D[:recorded],
        gan.record_G[:recorded],
    ]
    rng = {name: str(rng.bit_generator.state) for name, rng in vars(gan.rng).items()}
    return [array.copy() for array in arrays], rng, gan.step, [gan.optimizer_G.powers, gan.optimizer_D.powers]


def assert_equal(a, b):
    (arrays_a, *rest_a), (arrays_b, *rest_b) = state(a), state(b)
    for x, y in zip(arrays_a, arrays_b, strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    assert rest_a == rest_b


@pytest.mark.parametrize("stop", [0, 1, 8, 13])
@pytest.mark.parametrize(
    "data, options",
    [
        (table, dict(momentum_end=0.9, r1=0.1, r1_end=0.3, discriminator="dropout 0.7, 8, relu")),
        (table, dict(optimizer="adam", lr=0.01, k=2, average=0.0, dtype="float64", output_bias="data")),
        (lambda: load("ring"), dict(update="simultaneous", r2=0.2, prior="uniform", generator="dropout 0.9, 8, tanh")),
        (lambda: load("gaussian"), dict(optimizer="adam", lr=0.01, prior="spherical", loss="minimax", init_G=0.1)),
        (lambda: load("ring"), dict(conditional=True, prior="signs", discriminator="dropout 0.7, 8, relu")),
        (lambda: load("digits"), dict(conditional=True, r1=0.1)),
    ],
)
def test_a_loaded_gan_goes_on_bit_for_bit(data, options, stop, tmp_path):
    whole = trained(stop, data(), **options)
    checkpoint.save(tmp_path, whole)
    again, extra, note = checkpoint.load(tmp_path, data())
    assert again is not whole and extra == {} and note == "" and again.options() == whole.options()
    assert_equal(again, whole)
    for _ in range(11):  # over the end of an epoch (3 steps), of a report (4), of an average (10)
        whole.train_step()
        again.train_step()
    assert_equal(again, whole)
    whole_report, again_report = whole.report(), again.report()
    assert whole_report == again_report
    np.testing.assert_array_equal(whole.sample(5, seed=1), again.sample(5, seed=1))
    np.testing.assert_array_equal(whole.sample(5), again.sample(5))


def test_saving_does_not_disturb_training(tmp_path):
    watched, alone = trained(5), trained(5)
    checkpoint.save(tmp_path, watched)
    checkpoint.save(tmp_path, watched)
    assert_equal(watched, alone)
    watched.train_step(), alone.train_step()
    assert_equal(watched, alone)


def test_a_gan_without_its_data_can_sample_and_judge(tmp_path):
    images = from_array(np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), np.uint8), name="images")
    for data in (table(), images):
        gan = trained(7, data)
        checkpoint.save(tmp_path, gan)
        again, _, _ = checkpoint.load(tmp_path)
        np.testing.assert_array_equal(again.sample(6, seed=2), gan.sample(6, seed=2))
        np.testing.assert_array_equal(again.probability(data.X), gan.probability(data.X))
        assert again.data.image_shape == data.image_shape and again.data.name == data.name
    data.columns = ["a"] * 60
    checkpoint.save(tmp_path, gan)
    assert checkpoint.load(tmp_path)[0].data.columns == data.columns


def test_extra_arrays_come_back(tmp_path):
    extra = {"frames": [np.ones((2, 3), np.float32)] * 4, "frame_steps": [1, 2, 3, 4], "frame_surfaces": []}
    checkpoint.save(tmp_path, trained(1), extra)
    _, again, _ = checkpoint.load(tmp_path, table())
    assert again.keys() == extra.keys()
    assert again["frames"].shape == (4, 2, 3) and again["frames"].dtype == np.float32
    assert again["frame_steps"].tolist() == [1, 2, 3, 4] and again["frame_surfaces"].size == 0


def test_what_may_change(tmp_path):
    checkpoint.save(tmp_path, trained(3))
    gan, _, _ = checkpoint.load(tmp_path, table(), steps=50, backend="auto")
    assert (gan.steps, gan.backend, gan.step, gan.k) == (50, "auto", 3, 1)
    with pytest.raises(MiniganError, match="'many'"):
        checkpoint.load(tmp_path, table(), steps="many")


def test_the_file_is_plain_numpy(tmp_path):
    """No pickle; the options can be read without minigan."""
    checkpoint.save(tmp_path, trained(3))
    with np.load(tmp_path / NAME, allow_pickle=False) as file:
        assert file["theta_G"].dtype == np.float32 and all(not file[name].dtype.hasobject for name in file.files)
        meta = json.loads(bytes(file["meta"]))
    assert meta["step"] == 3 and meta["options"]["generator"] == "8, relu" and meta["data"]["name"] == "table"
    assert os.listdir(tmp_path) == [NAME]


def test_the_checkpoint_before_the_last_is_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, trained(step))
    assert sorted(os.listdir(tmp_path)) == [NAME, PREVIOUS]
    (tmp_path / NAME).unlink()
    gan, _, note = checkpoint.load(tmp_path)
    assert gan.step == 2 and note == f"{tmp_path / NAME} does not exist"
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(MiniganError, match=f"{NAME} does not exist; .*{PREVIOUS} does not exist; give the folder"):
        checkpoint.load(tmp_path)
    with pytest.raises(MiniganError, match="nowhere holds no run .there is no such folder.; give the folder of a run"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize("failing", ["np.savez", "os.fsync", "os.replace"])
def test_a_failed_save_leaves_what_was_there(failing, tmp_path, monkeypatch):
    def full(*args, **arrays):
        raise OSError(28, "No space left on device")

    for step in (1, 2):
        checkpoint.save(tmp_path, trained(step))
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(failing.replace("np.", "numpy."), full)
        checkpoint.save(tmp_path, trained(3))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, trained(1))
    replace = os.replace

    def crash(source, target):
        if target.name == NAME:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", crash)
        checkpoint.save(tmp_path, trained(2))
    gan, _, note = checkpoint.load(tmp_path)
    assert gan.step == 1 and "does not exist" in note


# ------------------------------------------------------------------------------------------- damage
@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """The bytes of a good checkpoint, and its arrays."""
    folder = tmp_path_factory.mktemp("intact")
    checkpoint.save(folder, trained(6))
    content = (folder / NAME).read_bytes()
    with np.load(io.BytesIO(content)) as file:
        return content, {name: file[name] for name in file.files}


def outcome(folder):
    """ "damaged", or the arrays that were read."""
    try:
        arrays, meta = checkpoint._read(folder / NAME)
    except Exception as error:
        assert not isinstance(error, Warning)
        with pytest.raises(MiniganError) as raised:
            checkpoint.load(folder)
        assert "is damaged" in str(raised.value)
        return "damaged"
    return arrays | {"meta": meta}


def test_no_flipped_byte_goes_unnoticed(intact, tmp_path):
    """A byte of the zip format's own decoration may not matter; then what is read is what was written."""
    content, arrays = intact
    rng = np.random.default_rng(0)
    ends = [*range(0, 64), *range(len(content) - 200, len(content), 3)]  # the first header, the table of contents
    positions = [*ends, *rng.integers(0, len(content), 250)]
    noticed = 0
    for i in positions:
        (tmp_path / NAME).write_bytes(content[:i] + bytes([content[i] ^ (1 << rng.integers(8))]) + content[i + 1 :])
        read = outcome(tmp_path)
        if read == "damaged":
            noticed += 1
        else:
            assert json.dumps(read.pop("meta")) == json.dumps(json.loads(bytes(arrays["meta"])))
            assert read.keys() == arrays.keys() - {"meta", "checksum"}
            for name in read:
                np.testing.assert_array_equal(read[name], arrays[name])
    assert noticed > len(positions) / 2


def test_no_truncation_goes_unnoticed(intact, tmp_path):
    content, _ = intact
    for length in [0, 1, 3, 4, 21, 22, *range(30, len(content), len(content) // 60), len(content) - 1]:
        (tmp_path / NAME).write_bytes(content[:length])
        assert outcome(tmp_path) == "damaged"


def rewritten(folder, arrays, resum=True, **changed):
    """Write a checkpoint with other arrays, and with the right checksum if wanted."""
    arrays = {name: array for name, array in (arrays | changed).items() if array is not None}
    if resum:
        arrays.pop("checksum", None)
        arrays["checksum"] = np.frombuffer(checkpoint._checksum(arrays), np.uint8)
    np.savez(folder / NAME, **arrays)


def test_any_change_of_an_array_changes_the_checksum(intact, tmp_path):
    _, arrays = intact
    rewritten(tmp_path, arrays, resum=False)
    assert outcome(tmp_path) != "damaged"
    theta = arrays["theta_G"]
    nudged = theta.copy()
    nudged[0] = np.nextafter(nudged[0], np.float32(9))
    for changed in (
        dict(theta_G=nudged), dict(theta_G=theta.astype(np.float64)), dict(theta_G=theta[None]), dict(theta_G=None),
        dict(theta_G=arrays["theta_D"], theta_D=theta), dict(more=theta), dict(checksum=None),
        dict(checksum=arrays["checksum"][:-1]), dict(meta=None),
    ):  # fmt: skip
        rewritten(tmp_path, arrays, resum=False, **changed)
        assert outcome(tmp_path) == "damaged", changed.keys()


def test_a_checkpoint_of_another_format_or_run_is_refused(intact, tmp_path):
    _, arrays = intact
    meta = json.loads(bytes(arrays["meta"]))
    rewritten(tmp_path, arrays, meta=np.frombuffer(json.dumps(meta | {"format": 99}).encode(), np.uint8))
    with pytest.raises(MiniganError, match="its format is 99 and this version reads 1"):
        checkpoint.load(tmp_path)
    for changed in (dict(theta_G=arrays["theta_G"][:-1]), dict(theta_D=arrays["theta_D"].astype(np.float64))):
        rewritten(tmp_path, arrays, **changed)
        with pytest.raises(MiniganError, match=r"the checkpoint's 'theta_.' is .* and the networks need .*another run"):
            checkpoint.load(tmp_path)
    options = meta["options"] | {"lr": -1}
    rewritten(tmp_path, arrays, meta=np.frombuffer(json.dumps(meta | {"options": options}).encode(), np.uint8))
    with pytest.raises(MiniganError, match="lr is -1"):
        checkpoint.load(tmp_path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_nothing_is_ever_unpickled(intact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, arrays = intact
    np.savez(tmp_path / NAME, **arrays, more=np.array([Trap()], object))
    assert outcome(tmp_path) == "damaged"
    (tmp_path / NAME).write_bytes(pickle.dumps(Trap()))
    assert outcome(tmp_path) == "damaged"
    with zipfile.ZipFile(tmp_path / NAME, "w") as file:
        file.writestr("theta_G.npy", pickle.dumps(Trap()))
    assert outcome(tmp_path) == "damaged"
    assert not (tmp_path / "trapped").exists()


def test_other_data_is_refused(tmp_path):
    checkpoint.save(tmp_path, trained(2))
    X = table().X.copy()
    X[4, 1] = np.nextafter(X[4, 1], np.float32(99))
    for data in (from_array(X, name="table"), from_array(table().X, name="other"), load("ring"), load("digits")):
        with pytest.raises(MiniganError, match=f"'{data.name}' is not what the run in .* was trained on"):
            checkpoint.load(tmp_path, data)


# ------------------------------------------------------------------------------------------- config.json
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"null", b"\xff", b"[" * 99_999, b'{"data": 5}', b'{"data": null}', b"{}",
     b'{"data": "ring", "image_size": "x"}', b'{"data": "ring", "data_dir": 3}'],
)  # fmt: skip
def test_a_damaged_config_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(MiniganError, match=r"\A[^\n]*config.json cannot be read [^\n]*; restore it[^\n]*\Z"):
        checkpoint.read_config(tmp_path)


def test_without_its_data_a_gan_neither_trains_nor_teaches(tmp_path):
    for data in (load("ring"), load("digits")):
        checkpoint.save(tmp_path, GAN(**TINY).fit(data))
        gan = checkpoint.load(tmp_path)[0]
        for call in (gan.train_step, Encoder(gan, batch_size=8).fit):
            with pytest.raises(MiniganError, match="loaded without its data; load it with them"):
                call()


def test_a_config_is_read_and_a_missing_one_is_no_run(tmp_path):
    with pytest.raises(MiniganError, match="holds no run"):
        checkpoint.read_config(tmp_path)
    with pytest.raises(MiniganError, match="holds no run"):
        checkpoint.read_config(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"data": "ring", "lr": 0.5}')
    config = checkpoint.read_config(tmp_path)
    assert config["lr"] == 0.5 and config["image_size"] is None and config["data_dir"] is None
    with pytest.raises(MiniganError, match="holds no run"):
        checkpoint.read_config(tmp_path / "config.json")


def test_a_large_network_in_a_large_checkpoint_is_believed(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, GAN(**TINY).build(table()))
    monkeypatch.setattr(checkpoint, "MEMORY", 0)  # what counts for large networks is the size of the file
    assert checkpoint.load(tmp_path)[0].step == 0


def test_a_gan_without_its_data_cannot_be_saved(tmp_path):
    checkpoint.save(tmp_path, GAN(**TINY).build(table()))
    with pytest.raises(MiniganError, match="loaded without its data"):
        checkpoint.save(tmp_path / "other", checkpoint.load(tmp_path)[0])
