"""What the figures of a run show."""

import importlib
import warnings
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib import font_manager
from test_compare import make_run

import ending
import plots
from plots import draw_confusion, draw_curves, draw_samples, draw_seeds

pytestmark = pytest.mark.figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be written, and what a grid would be drawn of."""
    found = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: found.append(figure))
    for module in (plots, ending):
        monkeypatch.setattr(module, "draw_grid", lambda *arguments: found.append(arguments))
    return found


def test_the_matrix_has_a_row_a_true_class_with_counts_and_shares(drawn):
    draw_confusion(torch.tensor([[3, 1], [0, 4]]), ["cat", 40 * "dog"], "run")
    axis = drawn[0].axes[0]
    counts = {(*text.get_position(), text.get_text()) for text in axis.texts}
    assert counts == {(0, 0, "3"), (1, 0, "1"), (1, 1, "4")}
    assert axis.images[0].get_array().tolist() == [[0.75, 0.25], [0, 1]]
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        cat, dog = (label.get_text() for label in labels)
        assert cat == "cat" and dog.startswith("dogdog") and len(dog) < 20


def test_curves_are_the_columns_of_the_table_and_of_several_seeds_their_mean(drawn):
    folders = [make_run("one", 3), make_run("two", 3)]
    second = folders[1] / "metrics.csv"
    second.write_text(second.read_text().replace(",1.0,", ",3.0,"))
    draw_curves(folders[0])
    draw_seeds("run", folders)
    for figure, train_loss in zip(drawn, (1.0, 2.0), strict=True):
        found = [[list(line.get_ydata()) for line in axis.lines] for axis in figure.axes]
        assert found == [[[train_loss] * 3, [1.1] * 3], [[0.5] * 3, [0.5, 0.6, 0.7]]]
        names = [text.get_text() for text in figure.axes[0].get_legend().texts]
        assert names == ["training", "validation"]


def test_a_training_loss_that_is_another_than_that_of_validation_says_so(drawn):
    for name, changes in (
        ("plain", {}),
        ("smooth", {"label_smoothing": 0.2}),
        ("taught", {"label_smoothing": 0.2, "teacher": "runs/other"}),
    ):
        draw_curves(make_run(name, 3, **changes))
    titles = [figure.axes[0].get_title() for figure in drawn]
    words = "training: against "
    assert titles == ["", f"{words}labels smoothed by 0.2", f"{words}the teacher's answers"]


def test_where_there_is_no_mistake_those_of_fewer_epochs_do_not_stay(random_images, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "mistakes.png").touch()
    right = [{"index": 0, "true": 1, "predicted": 1, "confidence": 0.9}]
    ending.draw_mistakes(random_images, right, tmp_path)
    assert not list((tmp_path / "plots").iterdir())


def test_samples_are_the_images_as_dealt_with_their_classes(drawn, random_images):
    draw_samples(random_images, [random_images.sample(5)], "run")
    ((images, titles, *_),) = drawn
    torch.testing.assert_close(images * 255, random_images.images[::8].float(), atol=1e-3, rtol=0)
    assert titles == [random_images.classes[label] for label in random_images.labels[::8]]


def test_a_mistake_says_its_class_what_it_was_taken_for_and_how_surely(drawn, random_images):
    wrong = {"index": 7, "true": 2, "predicted": 0, "confidence": 0.875}
    ending.draw_mistakes(random_images, [wrong, wrong | {"predicted": 2}], Path("run"))
    ((images, titles, *_),) = drawn
    torch.testing.assert_close(images * 255, random_images.images[[7]].float())
    true, taken, confidence = titles[0].split("\n")
    assert (true, taken.split()[-1], confidence, len(titles)) == ("c", "a", "0.88", 1)


def test_long_names_are_shortened_where_they_stay_apart():
    dogs = ["golden retriever puppy", "golden retriever adult", "cat"]
    assert list(plots.fitting(dogs).values()).count("cat") == 1
    for names in (dogs, [f"class number {k} of many" for k in range(12)], ["x" * 30, "y" * 30]):
        short = plots.fitting(names)
        assert len({short[name] for name in names}) == len(names)
        assert max(map(len, short.values())) <= 19


def test_a_letter_that_no_font_has_is_drawn_without_a_warning(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        importlib.reload(plots)  # says what is to be ignored, which pytest has put aside
        plots.draw_confusion(torch.eye(2, dtype=torch.int64), ["\u732b", "\u72ac"], tmp_path)
    assert not caught


def test_letters_that_the_own_font_lacks_are_drawn_in_one_of_the_system(monkeypatch):
    there = ["DejaVu Sans", "PingFang SC"]
    monkeypatch.setattr(font_manager, "get_font_names", lambda: there)
    with matplotlib.rc_context({"font.family": ["sans-serif"]}):
        importlib.reload(plots)
        assert matplotlib.rcParams["font.family"] == ["sans-serif", "PingFang SC"]


@pytest.mark.figures
def test_a_class_whose_folder_is_named_in_other_bytes_than_utf_8_is_drawn(tmp_path):
    name = b"caf\xe9".decode(errors="surrogateescape")  # as an old archive unpacks it
    draw_confusion(torch.tensor([[3, 1], [0, 4]]), [name, "tea"], tmp_path)
    assert (tmp_path / "plots" / "confusion.png").is_file()
    other = name.replace("\udce9", "\udce8")  # drawn alike, and no other name is less told apart
    short = plots.fitting([name, other, *(f"a very long class name, {end}" for end in ("a", "b"))])
    assert short[name] == short[other] == "caf?"
    assert len(set(short.values())) == 3
