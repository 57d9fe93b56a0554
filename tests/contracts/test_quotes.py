"""Figures quoted in README and docs are those of the records that they name."""

import itertools
import json
import re
import runpy
import statistics
from pathlib import Path

import pytest
from scipy import stats

from specreg.report.runs import published

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
DECIMALS = {"modes": 0, "kl": 2, "fd": 2, "coverage": 3}


def record(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def spread(runs, key, decimals=None):
    values = [run[key] for run in runs if run[key] is not None]
    decimals = DECIMALS[key] if decimals is None else decimals
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else mean


def of(runs, method):
    return [run for run in runs if run["method"] == method]


def groups():
    """Yield a page, what a group of runs is, and the runs."""
    first, fresh = record("digits-results"), record("digits-fresh")
    for name, runs in (("five seeds", first), ("fresh", fresh), ("ten", [*first, *fresh])):
        for method in ("sn", "static", "dynamic"):
            if alike := of(runs, method):
                yield "digits", f"{name} {method}", alike
    again = record("digits-again")["runs"]
    for processor, method in sorted({(run["processor"], run["method"]) for run in again}):
        alike = [run for run in of(again, method) if run["processor"] == processor]
        yield "digits", f"again {processor} {method}", alike
    losses = record("digits-losses")["runs"]
    for loss, method in dict.fromkeys((run["loss"], run["method"]) for run in losses):
        yield "digits", f"{loss} {method}", [run for run in of(losses, method) if run["loss"] == loss]
    for method in ("SN", "static SR"):
        yield "digits", f"keeps up {method}", of(record("digits-keeps-up")["runs"], method)
    starts = [run for run in record("dynamic-start")["runs"] if run["setting"] == "digits"]
    for start in (0, 500, 2000):
        yield "digits", f"dynamic SR from {start}", [run for run in starts if run["start"] == start]
    for page in ("guard", "rivals", "keep", "grid", "cifar8"):
        for name, runs in record(page).items():
            if len(runs) > 1:
                yield page, name, runs
    for name, seeds in record("evidence")["runs"].items():
        yield "guard", name, [{key: run["result"][key] for key in ("modes", "kl", "fd")} for run in seeds.values()]


@pytest.mark.parametrize(
    ("page", "name", "runs"), [pytest.param(*group, id=f"{group[0]}-{group[1]}") for group in groups()]
)
def test_a_table_has_the_row_of_a_group_of_runs(page, name, runs):
    keys = ("fd", "coverage") if page == "cifar8" else ("modes", "kl", "fd", "coverage")
    figures = [spread(runs, key) for key in keys if runs[0].get(key) is not None]
    lines = (RESULTS / f"{page}.md").read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.startswith("|") and all(f"| {figure} |" in line for figure in figures)]
    assert found, f"{page}.md has no row with {', '.join(figures)}"


def ring_rows():
    """Yield the rows of the page on what to use, from its record."""
    ring = [run for run in record("which")["runs"] if run["setting"] == "ring"]
    for method in dict.fromkeys(run["method"] for run in ring):
        runs = of(ring, method)
        whole = [run["high_quality"] for run in runs if run["modes"] == 8]
        lost, modes = f"{len(runs) - len(whole)} of {len(runs)}", ", ".join(str(run["modes"]) for run in runs)
        yield f"| {method} | {lost} | {modes} | {statistics.fmean(whole):.0%} |"


def rings():
    """Yield what is said of ten seeds on the ring, by its recipe and at equal rates."""
    runs = record("ring")["runs"]
    assert len(runs) == 80
    assert all(run["modes"] == 8 for run in runs if (run["setting"], run["method"]) != ("equal rates", "SN"))

    def quality(setting, method):
        shares = [100 * run["high_quality"] for run in of(runs, method) if run["setting"] == setting]
        return f"{statistics.fmean(shares):.1f} ± {statistics.stdev(shares):.1f}%"

    yield "docs/data.md", f"8 of 8 modes, {quality('recipe', 'SN')} of high quality"
    yield "docs/data.md", f"static SR has {quality('recipe', 'static SR')}"
    both = "static SR, i of a rank of two: 2", "static SR"
    for setting, text in (("equal rates", "{} are of high quality, without {}"), ("recipe", "{} and {}")):
        yield "docs/results/which.md", text.format(*(quality(setting, method) for method in both))
    soft = quality("equal rates", "static SR, strength 0.1")
    yield "docs/results/which.md", f"and {soft} are of high quality (ten seeds"
    none = [run["high_quality"] for run in of(runs, "no normalization")]
    yield "docs/results/mixtures.md", f"and {statistics.fmean(none):.0%} of the points are of high quality"
    modes = ", ".join(str(run["modes"]) for run in of(runs, "SN") if run["setting"] == "equal rates")
    yield "docs/results/mixtures.md", f"Modes under SN, seeds 0 to 19: {modes}, "


def mixtures():
    """Yield what is said of the grid."""
    runs = record("mixtures")["runs"]
    quality = {}
    for setting, method in dict.fromkeys((run["setting"], run["method"]) for run in runs):
        alike = [{**run, "quality": 100 * run["high_quality"]} for run in of(runs, method) if run["setting"] == setting]
        modes = [run["modes"] for run in alike]
        told = "25 in each" if set(modes) == {25} else ", ".join(map(str, modes))
        quality[setting, method] = share = f"{spread(alike, 'quality', 1)}%"
        row = setting, method, str(len(alike)), told, share, spread(alike, "kl"), spread(alike, "fd", 3)
        yield "docs/results/mixtures.md", f"| {' | '.join(row)} |"
    first, second = (quality["recipe", method] for method in ("static SR", "SN"))
    yield "docs/results/mixtures.md", f"{first} of high quality against {second}"
    yield "docs/data.md", f"25 of 25 modes, {second} of high quality"
    yield "docs/data.md", f"static SR has {first}"
    yield "docs/results/index.md", f"{first} of static SR's points are of high quality, {second} of SN's"
    for page in ("which", "mixtures"):
        yield f"docs/results/{page}.md", f"{first}"
    pair = [
        {run["seed"]: run["high_quality"] for run in of(runs, method) if run["setting"] == "recipe"}
        for method in ("static SR", "SN")
    ]
    gains = [pair[0][seed] - pair[1][seed] for seed in pair[1]]
    assert min(gains) > 0
    yield "docs/results/mixtures.md", f"Wilcoxon p = {stats.wilcoxon(gains).pvalue:.3f})"


def stacked():
    """Yield the rows of Stacked MNIST."""
    for run in record("stacked-mnist")["runs"]:
        told = [
            ", ".join(f"{evaluation[key]:{form}}" for evaluation in run["evaluations"])
            for key, form in (("modes", "d"), ("kl", ".2f"), ("fd", ".1f"), ("missing", ".0%"))
        ]
        moments = zip(*run["bulk at 0, 4,000 and 8,000"].values(), strict=True)
        told += [", ".join(f"{bulk:.2f}" for bulk in bulks) for bulks in moments]
        row = [run["cell"].removeprefix("unrolled-"), run["method"], str(run["seed"]), *told]
        yield "docs/results/stacked-mnist.md", f"| {' | '.join(row)} |"


def mnist():
    """Yield the rows of MNIST at 28x28."""
    for run in record("mnist")["runs"]:
        told = [
            ", ".join(f"{evaluation[key]:{form}}" for evaluation in run["evaluations"])
            for key, form in (("fd", ".1f"), ("lost", ".0%"))
        ]
        told += [f"{run['precision']:.2f}", f"{run['classifier_score']:.2f}"]
        told.append(", ".join(f"{bulk:.2f}" for bulk in run["bulk"]["convolutions.2"]))
        alarm = run["spectra alarm at"] or "never"
        row = run["method"], str(run["seed"]), *told, str(alarm), run["verdict"]["state"]
        yield "docs/results/mnist.md", f"| {' | '.join(row)} |"


def losses():
    """Yield what pages say of other losses: the beginnings of rows, distances on digits and on CIFAR-10 at 8x8."""
    digits, small = record("digits-losses")["runs"], record("cifar8")
    titles = {"hinge": ("hinge", ""), "non-saturating, R1 (γ = 1)": ("non-saturating, R1 (γ = 1)", ", R1"),
              "R3GAN's (relativistic, R1 and R2, γ = 1)": ("R3GAN's (R1 and R2, γ = 1)", ", R3GAN's loss")}  # fmt: skip
    for loss, (title, suffix) in titles.items():
        of_loss = [run for run in digits if run["loss"] == loss]
        methods = ("SN", "static SR", "no normalization")
        spreads = [spread(of(of_loss, method), "fd", 1) for method in methods]
        spreads += [spread(small[f"{method}{suffix}"], "fd", 1) for method in methods]
        yield "docs/results/which.md", f"| {title} | {' | '.join(spreads)} |"
        if loss == "hinge":
            yield "README.md", f"on other processors {spreads[1]} against {spreads[0]}"
        if "R3GAN" in loss:
            yield "README.md", f"{spreads[4]} against {spreads[3]}"
            yield "docs/results/digits.md", f"ends below 560 modes** (one has 222 on the way), {spreads[0]}."


def starts():
    """Yield what is said of the start of dynamic SR's record on CIFAR-10 at 8x8 and on the ring."""
    runs = record("dynamic-start")["runs"]
    small = {
        start: [run for run in runs if (run["setting"], run["start"]) == ("CIFAR-10 at 8x8", start)]
        for start in (0, 2000)
    }
    for start, text in ((0, "0 has a distance of {}"), (2000, "2,000 has {}")):
        yield "docs/results/digits.md", text.format(spread(small[start], "fd", 1))
    fast = {
        start: [run for run in runs if (run["setting"], run["start"]) == ("digits, fast", start)] for start in (0, 2000)
    }
    yield "docs/results/digits.md", f"{spread(fast[0], 'fd')} from 0, {spread(fast[2000], 'fd')} from 2,000"
    for start in (0, 2000):
        yield "docs/results/which.md", spread(fast[start], "fd", 1)
    for start in (0, 300):
        shares = [
            100 * run["high_quality"] for run in runs if (run["setting"], run["start"]) == ("ring, equal rates", start)
        ]
        yield "docs/results/digits.md", f"{statistics.fmean(shares):.1f} ± {statistics.stdev(shares):.1f}%"


def fast_distances():
    """Yield each method's Fréchet distance in the setting in which a convolution's spectrum collapses."""
    runs = record("verdict/convolutions")
    for method in dict.fromkeys(run["method"] for run in runs):
        yield spread([run["evaluations"][-1] for run in of(runs, method)], "fd", 1)


def p_value(first, second):
    """Return Wilcoxon's p, two-sided, of two groups of runs whose distances are paired by seed."""
    one, other = ({run["seed"]: run["fd"] for run in runs} for runs in (first, second))
    return stats.wilcoxon([one[seed] - other[seed] for seed in one]).pvalue


def p_values():
    """Yield a document and a p-value in it."""
    small = record("cifar8")
    yield "docs/results/cifar8.md", f"Wilcoxon p = {p_value(small['static SR'], small['SN']):.2f}"
    pair = small["static SR, R3GAN's loss"], small["SN, R3GAN's loss"]
    yield "docs/results/cifar8.md", f"Wilcoxon p = {p_value(*pair):.3f}"
    for page in ("cifar8", "index"):
        yield f"docs/results/{page}.md", f"(p = {p_value(*pair):.3f})"
    fast = [{**run, **run["evaluations"][-1]} for run in record("verdict/convolutions")]
    for page, first, second, text in (
        ("link", "dynamic", "sn", "Wilcoxon p = {:.3f}"), ("link", "static", "sn", "in 8 (p = {:.2f})"),
        ("link", "dynamic", "static", "in 5 (p = {:.2f})"), ("which", "dynamic", "static", "p = {:.2f})"),
    ):  # fmt: skip
        yield f"docs/results/{page}.md", text.format(p_value(of(fast, first), of(fast, second)))


def sentences():
    """Yield a document and what it says, written from the records."""
    digits = [*record("digits-results"), *record("digits-fresh")]
    sn, static = of(digits, "sn"), of(digits, "static")
    guard, judged = record("guard"), record("verdict/judge")
    again = [run for run in record("digits-again")["runs"] if run["processor"] == "AVX2"]
    now = {
        key: [spread(of(again, method), key, d) for method in ("static SR", "SN")]
        for key, d in (("modes", 0), ("fd", 1))
    }
    yield "README.md", f"{now['modes'][0]} of 1000 modes against {now['modes'][1]}"
    yield "README.md", f"Fréchet distance {now['fd'][0]} against {now['fd'][1]}, lower in each"
    distances = [
        spread(guard[name], "fd", 1) for name in ("SN, guarded by static SR", "static SR from the start", "SN")
    ]
    for distance in distances:
        yield "docs/results/index.md", distance
    for name, seeds in record("evidence")["runs"].items():
        if "default setting" in name:
            continue
        for page in ("README.md", "docs/results/index.md"):
            yield page, spread([run["result"] for run in seeds.values()], "fd", 1)
    coverage = {data: judged[data]["rows"]["coverage"] for data in ("digits", "ring", "grid")}
    told = {data: (f"{row['recall']:.0%}", f"{row['false alarms']:.0%}") for data, row in coverage.items()}
    yield "README.md", f"saw {told['digits'][0]} of the losses on digits"
    yield "README.md", f"false alarms in {told['digits'][1]}"
    yield "README.md", f"on the grid {told['grid'][0]} and {told['grid'][1]}"
    yield "README.md", f"{told['ring'][0]} and {told['ring'][1]}"
    yield "docs/results/index.md", f"{spread(static, 'fd')} against {spread(sn, 'fd')}"
    for method in dict.fromkeys(run["method"] for run in again):
        runs = of(again, method)
        row = " | ".join([method, str(len(runs)), *(spread(runs, key) for key in ("modes", "kl", "fd", "coverage"))])
        yield "docs/results/index.md", f"| {row} |"
    demo = record("demo")["runs"]
    for processor in ("AVX2", "no AVX2"):
        for title, method in (("SN", "sn"), ("static SR", "static")):
            runs = of([run for run in demo if run["processor"] == processor], method)
            whole = [run["high_quality"] for run in runs if run["modes"] == 8]
            bounds = stats.binomtest(len(runs) - len(whole), len(runs)).proportion_ci()
            interval = f"{bounds.low:.0%} to {bounds.high:.0%}"
            row = (processor, title, len(runs), len(runs) - len(whole), interval, f"{statistics.fmean(whole):.0%}")
            yield "docs/results/mixtures.md", f"| {' | '.join(map(str, row))} |"
            lost = f"{len(runs) - len(whole)} of {len(runs)} seeds"
            if (method, processor) == ("sn", "AVX2"):
                yield "README.md", f"SN ends without all eight modes in {lost}"
                yield "docs/results/index.md", f"in {lost} (95%: {interval}), static SR in none"
                modes = ", ".join(str(run["modes"]) for run in sorted(runs, key=lambda run: run["seed"]))
                yield "docs/results/mixtures.md", f"Modes under SN, seeds 0 to 19: {modes}."
    for row in ring_rows():
        yield "docs/results/which.md", row
    yield from itertools.chain(rings(), mixtures(), mnist(), stacked(), losses())
    for distance in fast_distances():
        for page in ("which", "index"):
            yield f"docs/results/{page}.md", distance
    link = record("verdict/link")
    yield "README.md", f"In {sum(table['trainings'] for table in link.values())} small trainings"
    rhos = [
        table["rows"][name]["rho"][0]
        for table in link.values()
        for name in ("mean bulk", "least bulk", "effective rank")
    ]
    yield "README.md", f"{min(rhos):.2f} to {max(rhos):.2f}"
    for cell, scores in published("paper")["cells"].items():
        cells = [
            f"{mean:.2f} ± {deviation:.2f}" for score in ("IS", "FID") for mean, deviation in scores[score].values()
        ]
        yield "docs/reproduction.md", f"| {cell} | {' | '.join(cells)} | {'✗' if scores['collapse'] == 'yes' else ''} |"
    gains = {
        score: [
            scores[score]["static"][0] / scores[score]["sn"][0] - 1 for scores in published("paper")["cells"].values()
        ]
        for score in ("IS", "FID")
    }
    told = [f"{100 * statistics.fmean(gain):+.1f}%" for gain in gains.values()]
    yield "docs/reproduction.md", f"changes IS by {told[0]} and FID by {told[1]} on average over the 26 settings"


def means_of_scale_and_start():
    """Yield what stands of dynamic SR's scale and start, each changed alone at the paper's own width."""
    for change, told in (("scale auto", "{:.1f} on the mean of 4,000 to 8,000"), ("start 2000", "{:.1f} on that mean")):
        told_of = [run for run in record("cifar32")["runs"] if f"; dynamic.{change}; " in run.get("changed", "")]
        (run,) = (run for run in told_of if run["seed"] == 0)
        scores = [evaluation["last_fd"] for evaluation in run["evaluations"] if evaluation["step"] >= 4000]
        yield "docs/results/cifar32.md", told.format(statistics.fmean(scores))


@pytest.mark.parametrize(("document", "sentence"), [*sentences(), *p_values(), *means_of_scale_and_start(), *starts()])
def test_a_sentence_is_written_from_the_records(document, sentence):
    text = re.sub(r"\s+", " ", (ROOT / document).read_text(encoding="utf-8"))
    assert re.sub(r"\s+", " ", sentence) in text


def bootstrapped(values):
    """Return the percentile interval of the mean, by 10,000 resamples."""
    drawn = stats.bootstrap(
        (values,), statistics.fmean, n_resamples=10_000, method="percentile", vectorized=False, rng=0
    )
    return pytest.approx(list(drawn.confidence_interval), abs=0.15)


def test_bootstrap_intervals_of_the_ten_seeds_are_those_of_the_records():
    page, runs = (RESULTS / "digits.md").read_text(encoding="utf-8"), record("digits-again")["runs"]
    table = re.findall(
        r"^\| (AVX2|no AVX2) \| (.*?) \| \d+ (?:\|[^|\n]*){3}\| (.*?) \| [^|]* \| (.*?) \|", page, re.MULTILINE
    )
    assert len(table) == 11
    for processor, method, mean, paired in table:
        own, sn = (
            {run["seed"]: run["fd"] for run in of(runs, name) if run["processor"] == processor}
            for name in (method, "SN")
        )
        assert [float(bound) for bound in mean.split(" to ")] == bootstrapped(list(own.values())), method
        if paired != "-":
            low, high = paired[paired.index("(") + 1 : -1].split(" to ")
            assert [float(low), float(high)] == bootstrapped([own[seed] - sn[seed] for seed in own]), method


def papers_width():
    """Yield the rows of the tables of C8-32 at the paper's own width."""
    names = {"sn": "SN", "static": "static SR", "dynamic": "dynamic SR, authors'"}
    forms = {
        ("scale", "start"): "dynamic SR, s₁ held",
        ("scale",): "dynamic SR, s₁ held, from 0",
        ("start",): "dynamic SR, authors' scale, from 400",
    }
    for run in record("cifar32")["runs"]:
        if "preset paper, bf16" in run.get("changed", ""):
            changes = tuple(re.findall(r"dynamic\.(\w+)", run["changed"]))
            name = forms[changes] if changes else names[run["method"]]
            by_step = {evaluation["step"]: evaluation for evaluation in run["evaluations"]}
            for key, what, show in (
                ("last_fd", "FD by the last weights", "{:.1f}"), ("fd", "FD by the running average", "{:.1f}"),
                ("lost", "data lost, at least", "{:.0%}"),
            ):  # fmt: skip
                steps = range(1000 * (1 + run["seed"]), 10_001, 1000 * (1 + run["seed"]))
                cells = [show.format(by_step[step][key]) if step in by_step else "-" for step in steps]
                yield pytest.param(f"| {what}, {name} | {' | '.join(cells)} |", id=f"{name} {run['seed']} {key}")


@pytest.mark.parametrize("row", [*papers_width()])
def test_the_tables_of_the_papers_width_are_the_records(row):
    assert row in (RESULTS / "cifar32.md").read_text(encoding="utf-8")


def test_tables_of_benchmarks_are_those_of_their_records(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    collapse, meter = (runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py")) for name in ("convolutions", "coverage"))
    assert collapse["tables"](record("verdict/convolutions")) in (RESULTS / "link.md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    for table in ("readings_table", "defects_table", "ranks_table"):
        assert meter[table](record("coverage")["results"]) in page, table


def test_stages_that_are_timed_exist(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    stages = runpy.run_path(str(ROOT / "benchmarks" / "compensation.py"))["STAGES"]
    assert [name for name, (owner, attribute) in stages.items() if not hasattr(owner, attribute)] == []


def test_the_tour_of_the_core_counts_the_lines_of_its_files():
    page = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| \[`([\w/]+\.py)`\]\(\S+\) \| (\d+) \|", page)
    counted = [(name, len((ROOT / "src/specreg" / name).read_text(encoding="utf-8").splitlines())) for name, _ in rows]
    assert len(rows) == 5
    assert [(name, int(lines)) for name, lines in rows] == counted
    assert f"{sum(lines for _, lines in counted)} lines with their docstrings" in page
