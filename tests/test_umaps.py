"""Pictures of embeddings: every name has its own style, key and number; files are whole."""

import anndata
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from scaling.evaluate import baselines, umaps

N_CELLS = 300


def cells(names: int = 3):
    rng = np.random.default_rng(0)
    label = np.arange(N_CELLS) % names
    x_NxD = rng.normal(size=(N_CELLS, 8)) + 6 * rng.normal(size=(names, 8))[label]
    labels = np.array([f"type {i}" for i in label])
    return x_NxD, labels, np.array([f"batch {i % 2}" for i in label])


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws without a UMAP, from two given coordinates, and returns the figure."""
    figures = []
    save = Figure.savefig

    def recorded(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", recorded)
    monkeypatch.setattr(umaps, "place", lambda x_NxD, seed: x_NxD[:, :2])

    def draw(x_NxD, labels, batch):
        umaps.draw(x_NxD, labels, batch, "title", tmp_path / "a.png", seed=0)
        return figures[-1]

    return draw


def keys(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_each_name_has_a_style_a_key_and_a_number(drawn):
    x_NxD, labels, batch = cells(40)
    labels[0], batch[:5] = "", ""
    left, right = drawn(x_NxD, labels, batch).axes
    assert len(keys(left)) == 41 and keys(left)[-1] == "unknown (1)"
    count = {name: (batch == name).sum() for name in ("batch 0", "batch 1")}
    most = sorted(count, key=count.get, reverse=True)
    assert keys(right) == [*(f"{name} ({count[name]})" for name in most), "unknown (5)"]
    styles = {
        (tuple(h.get_facecolor()[0]), h.get_paths()[0].vertices.tobytes())
        for h in left.get_legend().legend_handles
    }
    assert len(styles) == 41
    numbers = {text.get_text(): text.get_position() for text in left.texts}
    assert len(numbers) == 40 and not right.texts
    for key in keys(left)[:-1]:
        number, name = key.rsplit(" (", 1)[0].split("  ")
        mine = x_NxD[labels == name, :2].astype(np.float32)
        assert np.abs(mine - numbers[number]).sum(1).min() < 1e-6  # on one of its own cells


def test_every_cell_is_drawn_once_in_each_panel_in_its_colour(drawn):
    x_NxD, labels, batch = cells(9)
    for axis, names in zip(drawn(x_NxD, labels, batch).axes, (labels, batch), strict=True):
        at = {tuple(p): n for p, n in zip(x_NxD[:, :2].astype(np.float32), names, strict=True)}
        seen = {}
        points = 0
        for group in axis.collections:
            for point, colour in zip(group.get_offsets(), group.get_facecolors(), strict=False):
                name = at[tuple(np.float32(point))]
                marker = group.get_paths()[0].vertices.tobytes()
                assert seen.setdefault(name, (tuple(colour), marker)) == (tuple(colour), marker)
                points += 1
        assert points == N_CELLS
        assert len(set(seen.values())) == len(set(names))


def test_the_key_lies_inside_the_picture(drawn):
    x_NxD, labels, batch = cells(50)
    labels = np.char.add("a cell type of a long name, number ", labels)
    for names in (labels, batch):
        figure = drawn(x_NxD, names, batch)
        for axis in figure.axes:
            box = axis.get_legend().get_window_extent()
            across = axis.get_window_extent()
            assert box.y0 > 0 and box.x0 >= across.x0 - 1 and box.x1 <= across.x1 + 1


def test_the_same_seed_gives_the_same_picture_and_nothing_else_is_left(tmp_path):
    x_NxD, labels, batch = cells()
    for name in ("a.png", "b.png"):
        umaps.draw(x_NxD, labels, batch, "title", tmp_path / name, seed=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
    np.testing.assert_array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "b.png"))
    at_Nx2 = umaps.place(x_NxD.astype(np.float32), 3)
    centres = np.stack([at_Nx2[labels == name].mean(0) for name in np.unique(labels)])
    nearest = np.square(at_Nx2[:, None] - centres).sum(2).argmin(1)
    assert (np.unique(labels)[nearest] == labels).mean() > 0.99  # types far apart stay so
    assert not np.allclose(at_Nx2, umaps.place(x_NxD.astype(np.float32), 4))


def test_an_old_picture_stays_where_the_new_one_fails(drawn, monkeypatch, tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")

    def fails(figure, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fails)
    with pytest.raises(OSError, match="disk full"):
        drawn(*cells())
    assert (tmp_path / "a.png").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.full(9, "a")}, "one row, one label and one batch per cell"),
        ({"embedding_NxD": np.full((N_CELLS, 3), np.nan)}, "NaN or infinity"),
        ({"embedding_NxD": np.ones(N_CELLS)}, "pass a matrix"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    x_NxD, labels, batch = cells()
    given = {"embedding_NxD": x_NxD, "labels": labels, "batch": batch} | change
    with pytest.raises(ValueError, match=message):
        umaps.draw(**given, title="", path=tmp_path / "a.png", seed=0)
    assert not list(tmp_path.iterdir())


def test_too_few_cells_are_named(tmp_path):
    x_NxD, labels, batch = (array[:15] for array in cells())
    with pytest.raises(ValueError, match="15 cells: a UMAP of 15 neighbours needs more"):
        umaps.draw(x_NxD, labels, batch, "", tmp_path / "a.png", seed=0)


def test_real_cells_of_three_technologies(real_data, tmp_path):
    data = anndata.read_h5ad(real_data / "pbmc_3_technologies.h5ad")[::8]
    pca = baselines.apply_pca(baselines.fit_pca(data.X.tocsr()), data.X.tocsr())
    names = [data.obs[column].to_numpy(str) for column in ("cell_type", "batch")]
    umaps.draw(pca, *names, "PCA", tmp_path / "a.png", seed=0)
    assert imread(tmp_path / "a.png").std() > 0.05
