"""Picture of a confusion matrix: order, counts, and nothing half-written."""

import numpy as np
import pytest
from matplotlib import image

from scaling.evaluate import confusion


def test_rows_by_size_and_columns_in_their_order():
    true = np.array(["b"] * 3 + ["a"] * 2 + ["c"] * 5)
    named = np.array(["b", "a", "a"] + ["z", "a"] + ["c"] * 4 + ["y"])
    rows, columns, counts = confusion._table(true, named)
    assert rows == ["c", "b", "a"] and columns == ["c", "b", "a", "y", "z"]
    assert counts.tolist() == [[4, 0, 0, 1, 0], [0, 1, 2, 0, 0], [0, 0, 1, 0, 1]]


def test_types_of_one_size_stand_by_name_whatever_is_predicted():
    true = np.array(["b", "a", "c", "c"])
    for named in (["b", "b", "b", "c"], ["a", "a", "c", "c"]):
        rows, columns, _ = confusion._table(true, np.array(named))
        assert rows == columns == ["c", "a", "b"]


@pytest.mark.parametrize("classes", [1, 13, 90])
def test_a_picture_grows_with_the_classes(tmp_path, classes):
    rng = np.random.default_rng(0)
    names = np.array([f"type {c}" for c in range(classes)])
    true, named = names[rng.integers(0, classes, 500)], names[rng.integers(0, classes, 500)]
    path = confusion.draw(true, named, "types", tmp_path / "confusion.png")
    height, width = image.imread(path).shape[:2]
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]
    assert min(height, width) > 10 * classes


def test_colours_are_shares_of_the_row(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(confusion.Figure, "savefig", lambda figure, *of, **kw: drawn.append(figure))
    true, named = np.array(["a"] * 4 + ["b"] * 2), np.array(["a", "a", "a", "b", "b", "b"])
    with pytest.raises(FileNotFoundError):
        confusion.draw(true, named, "types", tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert [text.get_text() for text in axes.texts] == ["3", "1", "2"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a (4)", "b (2)"]


def test_a_failed_picture_leaves_the_old_one(tmp_path):
    path = tmp_path / "confusion.png"
    path.write_text("old")
    with pytest.raises(ValueError, match="one of each for every cell"):
        confusion.draw(np.array(["a"]), np.array(["a", "b"]), "t", path)

    def broken(figure, target, **how):
        target.write_text("half")
        raise OSError("disk full")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(confusion.Figure, "savefig", broken)
        confusion.draw(np.array(["a"]), np.array(["a"]), "t", path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
