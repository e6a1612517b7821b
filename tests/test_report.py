"""The numbers of README and FINDINGS are those of results/."""

import ast
import importlib
import json
import re
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from conftest import DATA
from scipy import stats

import exercise_1_1
from benchmarks import cifar
from config import RESUMABLE, defaults, flatten, merge
from evaluate import Flags, evaluate, load_judged
from plots import read_metrics
from studies import depth_table, mirrored, trust_table
from studies.experiments import RESULTS, add, load_experiments
from studies.report import DEPTHS, PAGES, paired, reflow, render, share
from studies.report_figures import draw_figures

PAGE = pytest.mark.parametrize("page", PAGES)


def text_of(page):
    return (DATA.parent / page).read_text(encoding="utf-8")


@PAGE
def test_a_page_is_what_the_results_say(page):
    assert render(page) == text_of(page)


@PAGE
def test_no_number_of_a_result_is_typed_by_hand(page):
    text = text_of(f"studies/{page}.jinja")
    for computed in (r"\{\{.*?\}\}", r"\{%.*?%\}", r"\{#.*?#\}", r"```.*?```", r"`[^`]*`"):
        text = re.sub(computed, "", text, flags=re.DOTALL)
    versions = r"Python must be 3\.11|torch 2\.15\.0|torchvision 0\.29\.2"
    exercises = r"(exercises?|###|and|of) [12]\.[123]\b"
    text = re.sub(f"{versions}|{exercises}", "", text)
    typed = re.findall(r"[^\n]*(?:\d\.\d|\d ?%|\d times|± \d)[^\n]*", text)
    assert typed == []


@pytest.mark.figures
def test_figures_are_those_of_the_results(tmp_path):
    draw_figures(load_experiments(), tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    kept = {path.name for path in (DATA.parent / "assets").iterdir()}
    assert drawn == sorted(kept - {"tensorboard.png"})  # a picture of a page, by studies.screenshot
    for name in drawn:  # an SVG holds every point as text; PNGs differ between builds of FreeType
        if name.endswith(".svg"):
            expected = (DATA.parent / "assets" / name).read_bytes()
            assert (tmp_path / name).read_bytes() == expected, name


@pytest.mark.parametrize(
    "folder", ["trust", *(f"trust/others/{name}" for name in ("default", "default_seed_1"))]
)
def test_the_tables_of_trust_are_those_of_the_numbers_beside_them(folder):
    study = json.loads((RESULTS / folder / "trust.json").read_text(encoding="utf-8"))
    text = (RESULTS / folder / "trust.txt").read_text(encoding="utf-8")
    assert trust_table.table_of(study) + "\n" == text


@pytest.mark.parametrize("folder", [f"depth/{name}" for name in DEPTHS])
def test_the_tables_of_depth_are_those_of_the_numbers_beside_them(folder):
    results = json.loads((RESULTS / folder / "results.json").read_text(encoding="utf-8"))
    text = (RESULTS / folder / "depth.txt").read_text(encoding="utf-8")
    assert depth_table.table_of(results) + "\n" == text


@PAGE
def test_every_picture_link_and_heading_that_a_page_points_to_is_there(page):
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text_of(page))
    assert links
    for path, heading in links:
        assert (DATA.parent / path).exists(), path
        if heading:
            titles = re.findall(r"^#+ (.*)", text_of(path or page), flags=re.MULTILINE)
            assert heading in {anchor(title) for title in titles}, heading


def anchor(title):
    """That of a heading on GitHub."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_several_seeds_are_their_mean_and_standard_deviation():
    values = [0.971, 0.975, 0.973]
    assert share(values) == f"{fmean(values):.4f} ± {stdev(values):.4f}"
    assert share([0.97]) == share(0.97) == "0.9700"


def test_the_interval_of_paired_differences_is_that_of_the_t_test():
    ours, theirs = [0.974, 0.971, 0.977, 0.973], [0.972, 0.972, 0.971, 0.970]
    found = paired(ours, theirs)
    points = [100 * value for value in ours], [100 * value for value in theirs]
    low, high = stats.ttest_rel(*points).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["mean"] == pytest.approx(fmean(points[0]) - fmean(points[1]))


def test_pairs_that_all_differ_alike_have_an_interval_of_no_width():
    found = paired([0.75, 0.5], [0.5, 0.25])
    assert found == dict.fromkeys(("mean", "low", "high", "worst"), 25.0)
    assert paired([0.75, 0.5], [0.5, 0.5])["worst"] == 25.0


def test_prose_is_filled_and_tables_and_code_are_not():
    long = "word " * 60
    assert max(map(len, reflow(long).splitlines())) <= 105
    for block in ("| " + long, "```\n" + long, "![" + long, "## " + long):
        assert reflow(block) == block


def test_what_a_run_leaves_is_taken_over_and_its_weights_judge_alike(digits_config, tmp_path):
    outcome = exercise_1_1.main(digits_config | {"seeds": [0, 1], "run_dir": "several"})
    add("several", tmp_path / "results")
    (experiment,) = load_experiments(tmp_path / "results").values()
    assert experiment.name == "exercise_1_1-several"
    assert share(experiment.values("test", "accuracy")) == share(
        [run["test"]["accuracy"] for run in outcome["runs"]]
    )
    assert [len(rows) for rows in experiment.metrics] == [1, 1]
    assert experiment.minutes_a_seed * 60 == pytest.approx(
        sum(run["seconds"] for run in outcome["runs"]) / 2
    )
    weights = tmp_path / "results" / "weights" / "exercise_1_1-several.pt"
    again = evaluate(*load_judged(Flags(str(weights))))
    assert again["accuracy"] == outcome["runs"][0]["test"]["accuracy"]
    assert experiment.mirrored == []


def test_a_seed_with_dropout_run_alone_is_the_one_among_five_to_the_last_digit():
    alone = read_metrics(RESULTS / "exercise_1_2-default_again" / "metrics.csv")
    among = read_metrics(RESULTS / "exercise_1_2-default" / "metrics-seed_0.csv")
    for rows in (alone, among):  # this one was kept in float32 when the first was run
        for row in rows:
            row["train/accuracy"] = float(np.float32(row["train/accuracy"]))
    assert alone == among


def test_mirror_images_are_measured_apart_and_go_with_the_run(digits_config, tmp_path):
    outcome = exercise_1_1.main(digits_config | {"seeds": [0, 1], "run_dir": "several"})
    results = tmp_path / "results"
    add("several", results)
    mirrored.main(mirrored.Flags("several", str(results)))
    measured = json.loads((results / "exercise_1_1-several" / "mirrored.json").read_text())
    assert measured["plain"] == [run["test"]["accuracy"] for run in outcome["runs"]]
    (experiment,) = load_experiments(results).values()
    assert experiment.mirrored == measured["mirrored"] != measured["plain"]
    add("several", results)  # another run of that name has mirror images of its own
    assert load_experiments(results)["exercise_1_1-several"].mirrored == []


def test_a_seed_that_was_trained_apart_is_one_more_run_of_its_experiment(digits_config, tmp_path):
    results = tmp_path / "results"
    several = exercise_1_1.main(digits_config | {"seeds": [0, 1], "run_dir": "small"})
    apart = exercise_1_1.main(digits_config | {"seed": 2, "run_dir": "small-seed_2"})
    add("small", results)
    add("small-seed_2", results)
    (experiment,) = load_experiments(results).values()
    assert experiment.values("test", "accuracy") == [
        run["test"]["accuracy"] for run in [*several["runs"], apart]
    ]
    assert [rows[-1]["val/loss"] for rows in experiment.metrics] == experiment.values("val", "loss")
    assert [path.stem for path in (results / "weights").iterdir()] == ["exercise_1_1-small"]
    exercise_1_1.main(digits_config | {"seed": 1, "run_dir": "small-seed_3"})
    add("small-seed_3", results)
    with pytest.raises(ValueError, match=r"small-seed_3 repeats a seed of exercise_1_1-small"):
        load_experiments(results)


def test_a_seed_alone_without_the_others_is_said_to_lack_them(digits_config, tmp_path):
    exercise_1_1.main(digits_config | {"run_dir": "small-seed_2"})
    add("small-seed_2", tmp_path / "results")
    with pytest.raises(ValueError, match=r"small-seed_2 is one more seed of exercise_1_1-small"):
        load_experiments(tmp_path / "results")


def test_metrics_belong_to_the_run_that_they_stand_beside(digits_config, tmp_path):
    exercise_1_1.main(digits_config | {"seeds": [10, 2], "run_dir": "two"})
    add("two", tmp_path / "results")
    (experiment,) = load_experiments(tmp_path / "results").values()
    assert experiment.last("val/loss") == experiment.values("val", "loss")


@pytest.mark.parametrize(
    "name",
    ["exercise_1_1-best", "exercise_1_1-wide"]
    + ["exercise_1_3-best", "exercise_1_3-wide", "exercise_1_3-residual"]
    + ["exercise_2_3-best", "exercise_2_3-wide"],
)
def test_a_preset_is_what_its_published_numbers_were_reached_with(name):
    exercise, _, preset = name.partition("-")
    script = importlib.import_module(exercise)
    written = flatten(merge(merge(defaults, script.config), script.presets[preset]))
    apart = RESUMABLE - {"epochs"} | {"seed", "seeds", "precision"}
    for run in load_experiments()[name].runs:
        ran = flatten(defaults | run["config"])
        differing = {key.partition(".")[0] for key in written if ran[key] != written[key]}
        assert differing <= apart


def test_a_run_that_has_not_finished_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no results\.json there"):
        add("nowhere", tmp_path)
    assert not list(tmp_path.glob("results*"))


LONG = [pytest.mark.slow]  # thousands of images in a CNN, or digits to set upright


@pytest.mark.real_data
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=LONG if re.search("_3-|best", path.stem) else [])
        for path in sorted((RESULTS / "weights").glob("*.pt"))
    ],
)
def test_the_weights_reach_what_readme_says_of_them(path):
    results = json.loads((RESULTS / path.stem / "results.json").read_text(encoding="utf-8"))
    run = results.get("runs", [results])[0]
    model, dataset = load_judged(Flags(str(path), data_dir=str(DATA)))
    found = evaluate(model, dataset)["accuracy"]
    exact = path.stat().st_size > 4 * run["parameters"]  # float32; bfloat16 moves an image or two
    assert found == pytest.approx(run["test"]["accuracy"], abs=0 if exact else 2e-3)


def test_weights_are_small_and_hold_nothing_else():
    assert list((RESULTS / "weights").glob("*.pt"))
    for path in (RESULTS / "weights").iterdir():
        assert Path(path).stat().st_size <= 2 * 2**20


@pytest.mark.parametrize("script", sorted(DATA.parent.glob("exercise_*.py")), ids=lambda p: p.stem)
def test_the_numbers_of_a_docstring_are_those_of_readme(script):
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    text = text_of("README.md")
    numbers = re.findall(r"\b0\.\d{3,}(?: \+- 0\.\d+)?", docstring)
    assert numbers
    for number in numbers:
        assert number.replace("+-", "±") in text, number


def test_a_benchmark_with_other_settings_does_not_write_over_the_published_one():
    assert cifar.Flags().folder == Path("results")
    assert cifar.Flags(batches=60).folder == Path("runs")
    assert cifar.Flags(batches=300, out="results").folder == Path("results")
