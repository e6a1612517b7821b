"""Several runs side by side, finished or not."""

import json
from pathlib import Path

import pytest

import plots
from compare import compare, compared, reached, read_run


def make_run(name, rows=0, results=None, **changes):
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    config = {"lr": 1e-3, "epochs": 3, "model": {"kind": "mlp", "layers": [64, 10]}, **changes}
    (folder / "config.json").write_text(json.dumps(config | {"run_dir": str(folder)}))
    if rows:
        lines = [f"{epoch},1.0,0.5,1.1,0.{4 + epoch}" for epoch in range(1, rows + 1)]
        header = "epoch,train/loss,train/accuracy,val/loss,val/accuracy"
        (folder / "metrics.csv").write_text("\n".join([header, *lines]))
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


FINISHED = {"val": {"accuracy": 0.7, "best_epoch": 3}, "test": {"accuracy": 0.65}, "seconds": 9.6}
FINISHED |= {"epochs": 3}
ACCURACIES = {"val_accuracy": 0.7, "test_accuracy": 0.65}
DEVIATIONS = {"val_accuracy": 0.0123, "test_accuracy": 0.0045}
ONE_OF_SEVERAL = {"mean": ACCURACIES, "std": dict.fromkeys(ACCURACIES), "seconds": 9.6}


def test_runs_are_rows_with_the_keys_that_differ_and_what_they_have(capsys):
    names = [
        make_run("day-a", 3, FINISHED),
        make_run("day-b", 3, lr=0.1),
        make_run("day-c", lr=0.1),
        make_run("day-d", results=ONE_OF_SEVERAL),
        make_run("day-e", results=ONE_OF_SEVERAL | {"std": DEVIATIONS}),
    ]
    table = names[1] / "metrics.csv"
    table.write_text(table.read_text().replace("0.7", "0.4"))  # its second epoch is the best
    for _ in range(2):  # the figure of the first is among the files of the second
        compare([*names, *Path("runs").glob("compared.*")])
        lines = capsys.readouterr().out.splitlines()
        assert [line.split() for line in lines[:6]] == [
            ["run", "validation", "epoch", "test", "seconds", "lr"],
            ["a", "0.7000", "3", "0.6500", "10", "0.001"],
            ["b", "0.6000", "2", "-", "-", "0.1"],
            ["c", "-", "-", "-", "-", "0.1"],
            ["d", "0.7000", "-", "0.6500", "10", "0.001"],
            ["e", "0.7000+-0.0123", "-", "0.6500+-0.0045", "10", "0.001"],
        ]
        assert lines[-1] == "curves: runs/compared.png"
    assert Path("runs/compared.png").is_file()
    assert Path("runs/compared.svg").is_file()


def test_a_run_that_trains_on_is_shown_as_far_as_it_is_and_not_as_it_was():
    make_run("longer", 5, FINISHED)
    run = read_run(Path("runs/longer"))
    assert reached(run) == ("0.9000", "5", "-", "-")


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "[]"), ("config.json", "null")]
    + [("results.json", "[]"), ("results.json", "null"), ("results.json", '{"a": 1}')],
)
def test_a_file_of_something_else_is_damaged(name, content):
    folder = make_run("odd", 1)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match="odd holds a damaged file"):
        read_run(folder)


def test_a_run_that_trains_and_keeps_its_last_epoch_is_shown_at_that():
    folder = make_run("best", 3)
    table = (folder / "metrics.csv").read_text().replace("0.7", "0.4")  # the second is the best
    for name, shown in (("best", ("0.6000", "2")), ("last", ("0.4000", "3"))):
        run = make_run(name + "-kept", 3, keep=name)
        (run / "metrics.csv").write_text(table)
        assert reached(read_run(run))[:2] == shown


@pytest.mark.figures
def test_of_several_seeds_the_mean_is_drawn_in_its_band(monkeypatch):
    make_run("seeds", seeds=[0, 1])
    make_run("seeds/seed_0", 3)
    make_run("seeds/seed_1", 2, seed=1)  # still training
    table = Path("runs/seeds/seed_1/metrics.csv")
    table.write_text(table.read_text().replace("0.5,1.1", "0.5,2.1"))
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    compare([Path("runs/seeds"), make_run("single", 3)])
    loss = drawn[0].axes[0]
    seeds, single = loss.lines
    assert seeds.get_xydata().tolist() == [[1, 1.6], [2, 1.6]]
    assert single.get_xydata().tolist() == [[1, 1.1], [2, 1.1], [3, 1.1]]
    (band,) = loss.collections
    assert set(band.get_paths()[0].vertices[:, 1]) == {1.1, 2.1}
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["seeds, 2 seeds", "single"]


def test_a_run_that_is_called_compared_is_no_figure(capsys):
    compare([make_run("one", 3), make_run("compared", 3)])
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]]
    assert rows == ["one", "compared"]


def test_runs_of_one_name_are_told_apart_by_their_folders(capsys):
    compare([make_run("a/seed_0", 3), make_run("b/seed_0", 3), make_run("c", 3)])
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "seed_0" in line]
    assert rows == ["a/seed_0", "b/seed_0"]


@pytest.mark.figures
def test_runs_of_any_name_are_in_the_legend_as_they_are_called(monkeypatch):
    drawn, names = [], ["_under", "$x_1$", "lr$\\frac{1$"]
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    compare([make_run(name, 3) for name in names])
    texts = drawn[0].legends[0].texts
    assert [text.get_text().strip() for text in texts] == names
    drawn[0].savefig("drawn.png")  # none is read as a formula


def test_a_run_may_be_compared_from_inside_its_folder(monkeypatch, capsys):
    monkeypatch.chdir(make_run("inside", 3))
    compare([Path(), Path("../inside")])
    said = capsys.readouterr()
    assert said.out.count("inside") >= 2 and said.err == ""


def test_what_is_too_wide_for_the_terminal_is_wrapped_and_all_there():
    wide = {f"a_key_of_some_length_{number}": number for number in range(9)}
    runs = [read_run(make_run("one", **wide)), read_run(make_run("two"))]
    wrapped = compared(runs, 80)
    assert max(map(len, wrapped.splitlines())) <= 80
    assert all(f"{key} {value}" in " ".join(wrapped.split()) for key, value in wide.items())
    assert compared(runs, 999).splitlines()[0].startswith("run ")


def test_where_the_figure_cannot_be_written_the_table_is_there(capsys):
    folder = make_run("one", 3)
    (folder.parent / "compared.png").mkdir()
    compare([folder])
    said = capsys.readouterr()
    assert "one" in said.out and "warning: compared.png could not be written" in said.err


def test_a_folder_that_is_no_run_is_one_line():
    Path("empty").mkdir()
    with pytest.raises(ValueError, match="only figures of earlier comparisons"):
        compare(["runs/compared.png", "runs/compared.svg"])
    with pytest.raises(ValueError, match=r"empty is no run \(config.json is missing\)"):
        compare([make_run("one"), "empty"])


def test_a_run_of_several_seeds_beside_one_is_told_by_its_seeds():
    several = make_run("day-a", results=ONE_OF_SEVERAL, seed=0, seeds=[0, 1, 2])
    table = compared(
        [read_run(several), read_run(make_run("day-b", 3, FINISHED, seed=4, seeds=[]))]
    )
    header, first, second, *_ = table.splitlines()
    assert header.split()[-1] == "seed"
    assert first.endswith("[0, 1, 2]") and second.endswith("4")
    assert "epoch -" not in compared([read_run(several)] * 2, width=20)
