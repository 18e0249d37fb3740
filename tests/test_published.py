"""The script that trains for the published numbers: it goes on where it stopped, and writes what it measured."""

import json
import sys
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import strict_cupy

from benchmarks import published
from minigan import GAN, MiniganError, load, recipes


def train(*arguments, **options):
    """published.train to its end."""
    return published.in_turns([published.train(*arguments, **options)], [nullcontext()])[0]


@pytest.fixture
def scores(monkeypatch):
    """Steps between saves, few; and a score that is quick."""
    monkeypatch.setattr(published, "SAVE_EVERY", 5)
    data = load("ring-pacgan")
    return data, partial(published.submit_points, published.Now(), published.Scorer(data).points)


def test_a_stopped_training_goes_on_and_gives_the_same_scores(scores, tmp_path):
    data, score = scores
    score_at_7_too = lambda gan, last: score(gan, last or gan.step == 7)
    whole = train("ring-pacgan", 3, tmp_path / "whole", data, score_at_7_too, steps=12)

    for stop in (8, 12):  # after the scores of step 7 and the checkpoint of step 5; while the last state is scored

        def stops(gan, last, stop=stop):
            if gan.step == stop:
                raise KeyboardInterrupt
            return score_at_7_too(gan, last)

        with pytest.raises(KeyboardInterrupt):
            train("ring-pacgan", 3, tmp_path / "part", data, stops, steps=12)
    again = train("ring-pacgan", 3, tmp_path / "part", data, score_at_7_too, steps=12)
    assert whole.pop("seconds") >= 0 and again.pop("seconds") >= 0
    assert whole == again and whole["step"] == 12 and whole["seed"] == 3 and whole["total"] == 8
    log = tmp_path / "part" / "scores.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [7, 12]
    assert train("ring-pacgan", 3, tmp_path / "part", data, None, steps=12)["step"] == 12  # it is done
    log.unlink()
    with pytest.raises(MiniganError, match="has done 12 steps already, more than 10"):
        train("ring-pacgan", 3, tmp_path / "part", data, None, steps=10)


def test_the_tables_hold_what_was_measured(scores, tmp_path, monkeypatch, capsys):
    data, score = scores
    monkeypatch.setattr(published, "RESULTS", tmp_path)
    rows = [train("ring-pacgan", s, tmp_path / "out" / str(s), data, score, steps=3) for s in range(2)]
    published.collect(tmp_path / "out")
    published.collect(tmp_path / "nothing new")
    kept = json.loads((tmp_path / "published.json").read_text())
    assert [row["seed"] for row in kept] == [0, 1]
    assert kept[0]["high_quality"] == pytest.approx(rows[0]["high_quality"], abs=1e-5)
    table = (tmp_path / "published.md").read_text()
    both = [row["sigma_ratio"] for row in kept]
    assert f"{np.mean(both):.4f} ± {np.std(both, ddof=1):.4f}" in table
    assert f"| 1 | {kept[1]['modes']} of 8 | {kept[1]['strict_modes']} |" in table


def test_the_recall_within_classes_is_held_against_the_recipe_without_labels():
    image = {"classes_present": 10, "classes": 10, "seconds": 60.0, "step": 9, "parzen": 1.0, "parzen_error": 0.1}
    image |= dict.fromkeys([c for c in published.IMAGES.values() if isinstance(c, str)], 0.5)
    trainings = (
        ("mnist-unconditional", 0, [0.8, 0.4]),
        ("mnist-unconditional", 1, [0.8, 0.6]),
        ("mnist-conditional", 0, [0.8, 0.42]),
    )
    rows = [
        image | {"recipe": recipe, "seed": seed, "class_recalls": recalls, "class_recall": np.mean(recalls)}
        for recipe, seed, recalls in trainings
    ]
    assert published.least_share(rows[2:], rows[:2]) == pytest.approx(0.42 / 0.5)
    assert "without labels 0.6500 ± 0.0707; of the ten classes the least favoured has 84%" in published.tables(rows)


def test_an_average_beside_it_leaves_the_training_as_it_is():
    """So one training serves the recipes mnist-paper and mnist-paper-averaged."""
    plain, averaged = (
        GAN(generator="8, relu", discriminator="8, relu", average=average, steps=30, backend="numpy").fit(load("ring"))
        for average in (0.0, 0.999)
    )
    assert np.array_equal(plain.G.theta, averaged.G.theta) and np.array_equal(plain.D.theta, averaged.D.theta)
    assert np.array_equal(averaged.sample(5, seed=0, average=False), plain.sample(5, seed=0))
    assert not np.array_equal(averaged.sample(5, seed=0), plain.sample(5, seed=0))


def test_the_recipes_of_the_paper_differ_in_how_they_are_sampled_only():
    options = {name: recipes.load(f"mnist-paper{name}") for name in ("", "-averaged", "-truncated")}
    sampled = [(o.pop("average"), o.pop("truncation", 1.0)) for o in options.values()]
    assert options[""] == options["-averaged"] == options["-truncated"]
    assert sampled == [(0.0, 1.0), (0.999, 1.0), (0.999, published.WAYS["truncated_"][1])]


def test_scores_that_come_late_are_kept_in_order_and_also_if_training_breaks_off(scores, tmp_path):
    data, submit = scores
    late = []

    def score_later(gan, last):
        if gan.step % 2 and not last:
            return None
        late.append((Future(), submit(gan, True).result()))
        if gan.step == 6:
            for future, result in reversed(late):
                future.set_result(result)
        if gan.step == 8:
            raise KeyboardInterrupt
        return late[-1][0]

    with pytest.raises(KeyboardInterrupt):
        train("ring-pacgan", 3, tmp_path, data, score_later, steps=12)
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6] and all("modes" in row for row in rows)


def test_trainings_on_different_devices_are_not_one_table():
    row = {"recipe": "ring-pacgan", "seed": 0, "step": 9, "seconds": 60, "modes": 8, "total": 8, "class_recall": 0}
    row |= dict.fromkeys([c for c in published.POINTS.values() if isinstance(c, str)], 0.5)
    text = published.tables([row, row | {"device": "GPU (one)", "high_quality": 0.75}])
    assert "## ring-pacgan\n" in text and "## ring-pacgan, GPU (one)\n" in text and "±" not in text


def test_a_training_on_a_gpu_begins_anew_and_stands_beside_that_on_the_cpu(scores, tmp_path, monkeypatch):
    data, submit = scores
    strict_cupy.install(monkeypatch)
    monkeypatch.setattr(published, "RESULTS", tmp_path)
    train("ring-pacgan", 3, tmp_path / "out" / "one", data, submit, steps=2)
    (tmp_path / "out" / "two").mkdir()
    (tmp_path / "out" / "two" / "scores.jsonl").write_text('{"step": 1}\n')  # of one that was stopped
    always = lambda gan, last: submit(gan, True)
    there = train("ring-pacgan", 3, tmp_path / "out" / "two", data, always, steps=2, backend="cupy")
    assert there["device"] == "GPU (strict stand-in)"
    published.collect(tmp_path / "out")
    rows = json.loads((tmp_path / "published.json").read_text())
    assert [(row["step"], row.get("device")) for row in rows] == [(2, None), (1, there["device"]), (2, there["device"])]


def test_trainings_in_turns_are_those_trainings(scores, tmp_path):
    data, submit = scores
    order = []

    def noted(gan, last):
        order.append((gan.seed, gan.step))
        return submit(gan, last)

    one = [train("ring-pacgan", seed, tmp_path / str(seed), data, submit, steps=4) for seed in (0, 1)]
    clock = SimpleNamespace(seconds=50.0)
    go = lambda s: published.train("ring-pacgan", s, tmp_path / f"turns {s}", data, noted, steps=4, clock=clock)
    both = published.in_turns([go(0), go(1)], [nullcontext()] * 2)
    assert 50 <= both[0]["seconds"] <= both[1]["seconds"] == round(clock.seconds, 1) and clock.seconds > 50
    assert [row | {"seconds": 0} for row in one] == [row | {"seconds": 0} for row in both]
    assert order == [(seed, step) for step in range(1, 5) for seed in (0, 1)]


def test_on_a_gpu_the_seeds_of_a_recipe_train_in_one_process(tmp_path, monkeypatch):
    strict_cupy.install(monkeypatch)
    rows = published.several("ring-pacgan", range(1, 3), tmp_path, None, 2, backend="cupy")
    assert [(row["seed"], row["step"], row["device"]) for row in rows] == [
        (s, 2, "GPU (strict stand-in)") for s in (1, 2)
    ]


def test_what_cannot_be_trained_is_refused(monkeypatch, capsys):
    for args, part in ((["foo"], "'foo'"), (["ring-pacgan", "--seeds", "0"], "not 0 and 0")):
        monkeypatch.setattr(sys, "argv", ["published.py", *args])
        with pytest.raises(SystemExit) as stop:
            published.main()
        assert stop.value.code == 2 and part in capsys.readouterr().err


def test_scoring_in_another_process_gives_the_same(tmp_path):
    here, there = (published.several("ring-pacgan", range(2), tmp_path / str(n), None, 2, scorers=n) for n in (0, 1))
    assert [row | {"seconds": 0} for row in here] == [row | {"seconds": 0} for row in there] and len(here) == 2
