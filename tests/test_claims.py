"""Every claim of examples/ holds with the small budget, and the framework reports what does not."""

import base64
import json
import re
import sys

import numpy as np
import pytest
from conftest import load_script

import minigan.__main__ as cli
from minigan import claims

SCRIPTS = sorted(claims.EXAMPLES.glob("[0-9][0-9]_*.py"))

HEAD = '''"""{title}, the first line.

More about it.
"""
import sys
from minigan import claims
from minigan.claims import Claim

def run(seed=0, quick=False):
'''
DRAW = (
    '    return [Claim(1, "one & one", "2", f"{2 + WRONG * seed}", WRONG * seed == 0)], claims.figure("it is 2")[0]\n'
)
TAIL = '\nif __name__ == "__main__":\n    claims.main(run)\n'


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_claim_holds(path, quick_claims_of):
    found, axes = quick_claims_of[path].result()
    assert found
    assert not [f"{c.claim}: expected {c.expected}, measured {c.measured}" for c in found if not c.holds]
    assert axes


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_says_what_it_claims_and_can_be_read_at_once(path):
    assert len(claims.docstring(path)) > 200
    assert len(path.read_text(encoding="utf-8").splitlines()) < 180


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """A folder of three small scripts: one holds, one does not for seed 1, one crashes."""
    folder = tmp_path / "examples"
    folder.mkdir()
    for name, body in {
        "01_right": DRAW.replace("WRONG", "0"),
        "02_wrong": DRAW.replace("WRONG", "1"),
        "03_crash": "    raise RuntimeError('no <luck>')\n",
    }.items():
        (folder / f"{name}.py").write_text(HEAD.format(title=name) + body + TAIL, encoding="utf-8")
    monkeypatch.setattr(claims, "EXAMPLES", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_claim_that_does_not_hold_is_reported_and_fails(examples, tmp_path, capsys):
    assert cli.main(["claims", "--only", "1,02", "--seeds", "2", "--out", "out"]) == 1
    shown = capsys.readouterr().out
    assert re.search(r"one & one +2 +2 \| 3 +NO: 1\n", shown)
    assert re.search(r"one & one +2 +2 \| 2 +yes\n", shown)
    assert "3 of 4 claims hold" in shown
    page = (tmp_path / "out" / "claims-01-02.html").read_text(encoding="utf-8")
    table = (tmp_path / "out" / "claims-01-02.md").read_text(encoding="utf-8")
    assert table.startswith("# The claims, seeds 0, 1\n\nWhat was measured is given seed by seed")
    assert "| one & one | 2 | 2 · 3 | NO: 1 |" in table and "| one & one | 2 | 2 · 2 | yes |" in table
    assert '<td class="no">NO: 1</td>' in page and "one &amp; one" in page
    for path in sorted(tmp_path.glob("out/seed-*/*.png")):  # every figure is in the page itself
        assert base64.b64encode(path.read_bytes()).decode() in page
    assert page.count("<img") == 4 and 'src="data:image/png;base64' in page
    assert cli.main(["claims", "--only", "1", "--out", "out"]) == 0
    assert (tmp_path / "out" / "claims-01.md").read_text(encoding="utf-8").startswith("# The claims, seed 0\n\n## ")


def test_a_number_that_is_not_one_is_not_below_a_limit():
    assert claims.below(1, "", 0.5, 1).holds and not claims.below(1, "", float("nan"), 1).holds


def test_a_crash_after_the_claims_were_saved_counts(examples, capsys):
    """Exit code 1 means that a claim does not hold: with all holding it is something else."""
    for code in (1, 3):
        script = (examples / "01_right.py").read_text(encoding="utf-8")
        late = f"import atexit, os\natexit.register(os._exit, {code})\n" + script
        (examples / f"0{code + 4}_late.py").write_text(late, encoding="utf-8")
        assert cli.main(["claims", "--only", f"0{code + 4}"]) == 1
        assert f"failed with exit code {code}" in capsys.readouterr().out


def test_what_differs_between_seeds_stands_side_by_side():
    one, two = (claims.Claim(1, "it is n", str(n), str(n), True) for n in (1, 2))
    outcomes = [claims.Outcome(None, n, [claim], "", 0, None) for n, claim in enumerate((one, two))]
    assert claims.merge(outcomes) == [("it is n", "1 | 2", "1 | 2", "yes")]


def test_a_judge_that_answers_always_the_same_has_an_auc_of_one_half():
    auc = load_script(next(path for path in SCRIPTS if path.stem.startswith("15"))).auc
    assert auc(np.full(30, 0.7), np.full(20, 0.7)) == 0.5
    assert auc(np.array([1.0, 2, 3]), np.array([0.5, 2.5])) == 4 / 6


def test_all_claims_that_hold_give_exit_code_0(examples, tmp_path):
    assert cli.main(["claims", "--only", "01", "--seed", "1"]) == 0
    folder = tmp_path / claims.OUT
    names = ["01_right.json", "01_right.png", "claims-01.html", "claims-01.md"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_crash_is_reported_and_fails(examples, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    left = [claims.Claim(1, "from an earlier run", "", "", True)]
    claims.save(tmp_path / "out" / "03_crash", left, claims.figure("old")[0])
    assert cli.main(["claims", "--only", "03", "--out", "out"]) == 1
    shown = capsys.readouterr().out
    assert "RuntimeError: no" in shown and "<luck>" in shown
    assert "earlier" not in shown and "1 failed to run" in shown
    page = (tmp_path / "out" / "claims-03.html").read_text(encoding="utf-8")
    assert "RuntimeError: no &lt;luck&gt;" in page and "<img" not in page


def test_mistakes_are_one_sentence(examples, tmp_path, monkeypatch, capsys):
    assert cli.main(["claims", "--only", "7"]) == 2
    assert capsys.readouterr().err == "minigan: --only 7: there is no script 07; there are 01, 02, 03\n"
    (tmp_path / "file").write_text("")
    assert cli.main(["claims", "--out", "file"]) == 2
    assert "choose another with --out" in capsys.readouterr().err
    (tmp_path / "page" / "claims-01.html").mkdir(parents=True)
    assert cli.main(["claims", "--only", "1", "--out", "page"]) == 2
    assert capsys.readouterr().err.endswith("cannot be written (Is a directory); choose another folder with --out\n")
    monkeypatch.setattr(claims, "EXAMPLES", tmp_path / "nowhere")
    assert cli.main(["claims"]) == 2
    assert capsys.readouterr().err.endswith("run this in a checkout of the repository\n")


@pytest.mark.parametrize("name, seed, code", [("01_right", 1, 0), ("02_wrong", 0, 0), ("02_wrong", 1, 1)])
def test_a_script_prints_its_table_and_saves_its_picture(examples, tmp_path, capsys, name, seed, code):
    module = load_script(examples / f"{name}.py")
    with pytest.raises(SystemExit) as stop:
        claims.main(module.run, ["--seed", str(seed), "--out", "out"])
    assert stop.value.code == code
    assert ("yes" if code == 0 else "NO") in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))[0]["row"] == 1
    assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_script_tells_a_mistake_in_one_sentence(examples, monkeypatch, capsys):
    module = load_script(examples / "01_right.py")
    monkeypatch.setattr(sys, "argv", ["01_right.py", "--seed", "-1"])
    with pytest.raises(SystemExit) as stop:
        claims.main(module.run)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "01_right.py: --seed is -1; it must be 0 or more\n"
