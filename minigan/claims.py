"""The theory, measured: each script of examples/ runs some claims of the literature and draws them.

A script defines ``run(seed=0, quick=False)``, which returns (list of Claim, matplotlib Figure), and ends with
``claims.main(run)``. quick=True is a smaller budget for the tests, with the same tolerances. All of them at once:

    python -m minigan claims          the table, and one page with every picture, runs/claims/claims.html
"""

import argparse
import ast
import base64
import html
import json
import os
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from minigan import plots
from minigan.backend import Backend
from minigan.errors import MiniganError

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
OUT = "runs/claims"
WIDTHS = (48, 26, 44, 9)  # of the printed table: claim, expected, measured, holds


@dataclass
class Claim:
    """One statement and what was found: ``holds`` must follow from numbers within the tolerance of ``expected``.

    row is its number in the list of what the source documents claim (docs/math.md, section 13).
    """

    row: int
    claim: str
    expected: str
    measured: str
    holds: bool

    def __post_init__(self):
        self.holds = bool(self.holds)  # of a NumPy bool, which JSON does not know


def below(row, claim, value, limit, note=""):
    """The Claim that a number is smaller than a limit; NaN is not. ``note`` is put before the expected value."""
    return Claim(row, claim, f"{note} < {limit:g}".strip(), f"{value:.2g}", value < limit)


@dataclass
class Outcome:
    """What one run of one script left: its claims, or the last line of its complaint."""

    script: Path
    seed: int
    claims: list
    crash: str
    seconds: float
    folder: Path

    @property
    def holds(self):
        return not self.crash and all(claim.holds for claim in self.claims)


# -- One script --------------------------------------------------------------------------------------------


def figure(title, rows=1, columns=1, width=9.0, height=3.6, **options):
    """(a matplotlib Figure, its axes) in the style of this package's pictures; sizes in inches.

    title states the claim. The axes are one Axes or an array of them, as ``Figure.subplots`` gives; options go there.
    """
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    fig.suptitle(title, fontsize=11, color=plots.INK, x=0.01, ha="left")
    axes = fig.subplots(rows, columns, **options)
    for ax in fig.axes:
        plots._style(ax)
        for label in (ax.xaxis.label, ax.yaxis.label):
            label.set_size(9)
        ax.title.set_size(9)
    return fig, axes


def main(run, argv=None):
    """The command line of a script: run it, print its table, save its picture, exit with 0 only if all holds.

    Writes FOLDER/NAME.png and FOLDER/NAME.json (the claims); a figure that carries ``gif``, the bytes of an
    animation, also leaves NAME.gif.
    """
    script = Path(run.__code__.co_filename)
    p = argparse.ArgumentParser(description=run.__globals__.get("__doc__"))
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    p.add_argument("--out", default=OUT, metavar="FOLDER", help=f"where the picture goes (default: {OUT})")
    args = p.parse_args(argv)
    try:
        if args.seed < 0:
            raise MiniganError(f"--seed is {args.seed}; it must be 0 or more")
        folder = make_folder(args.out)
        Backend("numpy").set_threads(1)  # its products are small: see train.choose_threads
        start = time.perf_counter()
        claims, fig = run(seed=args.seed)
        seconds = time.perf_counter() - start
        save(folder / script.stem, claims, fig)
    except MiniganError as error:
        print(f"{script.name}: {error}", file=sys.stderr)
        sys.exit(2)
    sys.stdout.reconfigure(errors="replace")  # a console that has no Greek
    print_table([(c.claim, c.expected, c.measured, "yes" if c.holds else "NO") for c in claims])
    print(f"{seconds:.1f} s; the picture is {folder / script.stem}.png")
    sys.exit(0 if all(claim.holds for claim in claims) else 1)


def make_folder(path):
    """The folder of this name, made if need be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MiniganError(f"{path} cannot be made a folder ({error.strerror}); choose another with --out") from error
    return Path(path)


def save(stem, claims, fig):
    """Write the picture, the animation if there is one, and the claims, beside each other."""
    content = json.dumps([asdict(claim) for claim in claims], ensure_ascii=False, indent=1)
    write(stem.with_name(stem.name + ".png"), plots._figure_png(fig))
    if hasattr(fig, "gif"):
        write(stem.with_name(stem.name + ".gif"), fig.gif)
    write(stem.with_name(stem.name + ".json"), content.encode())


def write(path, content):
    """Put bytes in place in one move; one sentence if that is not possible."""
    try:
        plots._write(path, content)
    except OSError as error:
        raise MiniganError(f"{path} cannot be written ({error.strerror}); choose another folder with --out") from error


def print_table(rows):
    """Print rows of (claim, expected, measured, holds), long cells wrapped."""
    for row in [("claim", "expected", "measured", "holds"), tuple("-" * width for width in WIDTHS), *rows]:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, WIDTHS, strict=True)]
        for i in range(max(map(len, cells))):
            line = [cell[i] if i < len(cell) else "" for cell in cells]
            print("  ".join(f"{part:{width}}" for part, width in zip(line, WIDTHS, strict=True)).rstrip())


# -- All of them -------------------------------------------------------------------------------------------


def run_all(seed=0, seeds=1, out=OUT, only=None):
    """Run the scripts, each in a process of its own, two at a time; print the table and write the page.

    seed, seeds: the first seed and how many. only: numbers of scripts, such as "03,07"; None means all.
    Returns True if every claim holds for every seed. Raises MiniganError without scripts, or for an unknown number.
    """
    scripts, folder, many = find_scripts(only), make_folder(out), seeds > 1
    jobs = [(script, s, make_folder(folder / f"seed-{s}") if many else folder)
            for script in scripts for s in range(seed, seed + seeds)]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda job: run_script(*job), jobs))
    sys.stdout.reconfigure(errors="replace")
    by_script = {script: [o for o in outcomes if o.script == script] for script in scripts}
    for script, found in by_script.items():
        print(f"\n{script.stem}: {title(script)}")
        print_table(merge(found))
    page = folder / ("claims.html" if only is None else f"claims-{'-'.join(s.name[:2] for s in scripts)}.html")
    write(page, make_page(by_script).encode())
    write(page.with_suffix(".md"), make_markdown(by_script).encode())
    good = sum(claim.holds for o in outcomes for claim in o.claims)
    crashed = sum(bool(o.crash) for o in outcomes)
    failed = f", {crashed} failed to run" * bool(crashed)
    print(f"\n{good} of {sum(len(o.claims) for o in outcomes)} claims hold{failed}")
    print(f"every picture is in {page}")
    return all(o.holds for o in outcomes)


def find_scripts(only=None):
    """The scripts of examples/, in order, or those whose numbers are in ``only``."""
    scripts = sorted(EXAMPLES.glob("[0-9][0-9]_*.py"))
    if not scripts:
        raise MiniganError(f"there are no scripts in {EXAMPLES}; run this in a checkout of the repository")
    if only is None:
        return scripts
    numbers = {number.strip().zfill(2) for number in only.split(",")}
    unknown = numbers - {script.name[:2] for script in scripts}
    if unknown:
        known = ", ".join(script.name[:2] for script in scripts)
        raise MiniganError(f"--only {only}: there is no script {min(unknown)}; there are {known}")
    return [script for script in scripts if script.name[:2] in numbers]


def run_script(script, seed, folder):
    """Run one script and read what it left: an Outcome, whatever happens to it."""
    record = folder / f"{script.stem}.json"
    for old in (record, record.with_suffix(".png"), record.with_suffix(".gif")):
        old.unlink(missing_ok=True)  # an earlier run's must not pass for this one's
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script), "--seed", str(seed), "--out", str(folder)],
        env=env, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    seconds = time.perf_counter() - start
    claims, crash = [], ""
    if done.returncode in (0, 1) and record.exists():
        claims = [Claim(**claim) for claim in json.loads(record.read_text(encoding="utf-8"))]
    if not claims or done.returncode != (not all(claim.holds for claim in claims)):
        claims, crash = [], (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        crash = f"failed with exit code {done.returncode}: {crash}"
    outcome = Outcome(script, seed, claims, crash, seconds, folder)
    holding = crash or f"{sum(claim.holds for claim in claims)} of {len(claims)} claims hold"
    print(f"{script.stem}, seed {seed}: {holding} ({seconds:.0f} s)", file=sys.stderr, flush=True)
    return outcome


def merge(outcomes):
    """The table's rows for one script's outcomes, one for each seed: what differs between them side by side."""
    rows = [("the script runs to its end", f"seed {o.seed}", o.crash, "NO") for o in outcomes if o.crash]
    finished = [o for o in outcomes if not o.crash]
    for found in zip(*(o.claims for o in finished), strict=True):
        bad = [str(o.seed) for o, claim in zip(finished, found, strict=True) if not claim.holds]
        failed = f"NO: {','.join(bad)}" if len(outcomes) > 1 else "NO"
        measured = " | ".join(claim.measured for claim in found)
        expected = " | ".join(dict.fromkeys(claim.expected for claim in found))
        rows.append((found[0].claim, expected, measured, failed if bad else "yes"))
    return rows


def make_markdown(by_script):
    """The table alone as Markdown (str), for a place that shows no pictures."""
    cell = lambda text: text.replace(" | ", " · ").replace("|", "\\|")  # a bar would end the cell
    parts = []
    for script, outcomes in by_script.items():
        seconds = ", ".join(f"{o.seconds:.0f}" for o in outcomes)
        parts += [
            f"\n## {script.stem}",
            title(script) + "\n",
            "| claim | expected | measured | holds |",
            "|---|---|---|---|",
        ]
        parts += [f"| {' | '.join(map(cell, row))} |" for row in merge(outcomes)]
        parts.append(f"\n{seconds} s")
    seeds = sorted({o.seed for found in by_script.values() for o in found})
    how = "What was measured is given seed by seed, with a · between; below a table, the seconds that each seed took.\n"
    heading = f"# The claims, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}\n"
    return heading + ("\n" + how) * (len(seeds) > 1) + "\n".join(parts) + "\n"


def title(script):
    """The first line of a script's docstring."""
    return docstring(script).splitlines()[0] if docstring(script) else script.stem


def docstring(script):
    """The docstring of a script, which need not be able to run."""
    try:
        return ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    except SyntaxError:
        return ""


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>minigan: the theory, measured</title>
<style>
body {{ font: 15px/1.45 sans-serif; color: #222; max-width: 68em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ border-bottom: 1px solid #ddd; padding: .3em .6em; text-align: left; vertical-align: top }}
th.script {{ background: #f4f4f4 }}
.no {{ color: #fff; background: #b00020 }}
pre {{ white-space: pre-wrap; font: inherit }}
img {{ max-width: 100% }}
</style></head><body>
<h1>The theory, measured</h1>
<p>{summary}</p>
<table><tr><th>claim</th><th>expected</th><th>measured{seeds}</th><th>holds</th></tr>
{table}
</table>
{sections}
</body></html>
"""


def make_page(by_script):
    """One self-contained HTML page (str) for {script: its outcomes}: the table, then every picture."""
    table, sections, text = [], [], html.escape
    for script, outcomes in by_script.items():
        name = text(script.stem)
        table.append(
            f'<tr><th class="script" colspan="4"><a href="#{name}">{name}</a>: {text(title(script))}</th></tr>'
        )
        for *cells, holds in merge(outcomes):
            style = "yes" if holds == "yes" else "no"
            table.append(
                "<tr>"
                + "".join(f"<td>{text(cell)}</td>" for cell in cells)
                + f'<td class="{style}">{text(holds)}</td></tr>'
            )
        pictures = "\n".join(embed(path, o.seed) for o in outcomes for path in pictures_of(o))
        seconds = ", ".join(f"{o.seconds:.0f}" for o in outcomes)
        sections.append(
            f'<h2 id="{name}">{name}</h2>\n<pre>{text(docstring(script))}</pre>\n{pictures}\n<p>{seconds} s</p>'
        )
    outcomes = [o for found in by_script.values() for o in found]
    bad = sum(not claim.holds for o in outcomes for claim in o.claims) + sum(bool(o.crash) for o in outcomes)
    seeds = sorted({o.seed for o in outcomes})
    return PAGE.format(
        summary="Every claim holds." if not bad else f"{bad} claims do not hold, or their scripts failed.",
        seeds=f" (seeds {seeds[0]} to {seeds[-1]})" if len(seeds) > 1 else f" (seed {seeds[0]})",
        table="\n".join(table),
        sections="\n".join(sections),
    )


def pictures_of(outcome):
    """The picture and the animation that a script left, those that exist."""
    paths = [outcome.folder / f"{outcome.script.stem}{ending}" for ending in (".png", ".gif")]
    return [path for path in paths if path.exists() and not outcome.crash]


def embed(path, seed):
    """An <img> that holds its picture's bytes."""
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<p>seed {seed}</p><img alt="{path.stem}, seed {seed}" src="data:image/{path.suffix[1:]};base64,{content}">'
