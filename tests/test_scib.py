"""Integration scores against the original scib package, on real cells and the same embeddings."""

import pathlib
import shutil
import subprocess
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    scib = pytest.importorskip("scib")
    harmonypy = pytest.importorskip("harmonypy")
    import scanpy
    from scib.metrics.lisi import compute_simpson_index_graph
    from scib.metrics.utils import diffusion_nn

from scaling.evaluate import baselines, batch_mixing, neighbourhoods, weighted

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # theirs, of other versions
CLOSE = 0.02
SETS = ("mixology_5_lines", "pbmc_3_technologies")
EMBEDDINGS = ("hvg", "pca", "harmony")
EQUAL = (
    *("asw_label", "batch_score", "pcr_score", "nmi", "ari", "graph_connectivity"),
    *("isolated_labels_asw", "isolated_labels_f1"),
)


def read(folder: pathlib.Path, name: str) -> anndata.AnnData:
    """Singlets with a label, a batch and their log-normalised 2,000 highly variable genes."""
    data = anndata.read_h5ad(folder / f"{name}.h5ad")
    if "demuxlet" in data.obs:  # the doublets of two cell lines have no label of their own
        data = data[(data.obs["demuxlet"] == "SNG").to_numpy()]
    counts = data.X.tocsr()
    pca = baselines.fit_pca(counts)
    obs = data.obs[["cell_type", "batch"]].astype(str).astype("category")
    cells = anndata.AnnData(baselines.apply_hvg(pca.hvg, counts), obs)
    cells.obsm["hvg"], cells.obsm["pca"] = cells.X, baselines.apply_pca(pca, counts)
    mixed = harmonypy.run_harmony(cells.obsm["pca"], cells.obs, "batch", random_state=0).Z_corr
    mixed = np.asarray(mixed, np.float32)
    cells.obsm["harmony"] = mixed if len(mixed) == len(cells) else mixed.T
    return cells


def ours(cells: anndata.AnnData, embedding: str) -> dict[str, float | None]:
    labels, batch = (cells.obs[column].to_numpy(str) for column in ("cell_type", "batch"))
    x_NxD = cells.obsm[embedding]
    found = batch_mixing.integration(x_NxD, labels, batch, cells.X, seed=0)
    clusterings = neighbourhoods.clusterings(
        neighbourhoods.nearest(neighbourhoods.search(x_NxD), neighbourhoods.GRAPH),
        batch_mixing.RESOLUTIONS,
        seed=0,
    )
    one_each = np.ones((1, len(cells)))
    nmi = [weighted.nmi(labels, clusters)(one_each)[0] for clusters in clusterings]
    cells.obs["cluster"] = pd.Categorical(clusterings[int(np.argmax(nmi))].astype(str))
    for resolution, clusters in zip(batch_mixing.RESOLUTIONS, clusterings, strict=True):
        cells.obs[f"iso_label_{resolution}"] = pd.Categorical(clusters.astype(str))
    return {score.name: score.value for score in found}


def theirs(cells: anndata.AnnData, embedding: str) -> dict[str, float]:
    """The original's scores; of the clusterings that `ours` left in obs."""
    keys = {"batch_key": "batch", "label_key": "cell_type"}
    scanpy.pp.neighbors(cells, n_neighbors=15, use_rep=embedding)
    before = anndata.AnnData(cells.X, cells.obs)
    isolated = {**keys, "embed": embedding, "verbose": False}
    found = {
        "asw_label": scib.me.silhouette(cells, "cell_type", embedding),
        "batch_score": scib.me.silhouette_batch(cells, **keys, embed=embedding, verbose=False),
        "pcr_score": scib.me.pcr_comparison(before, cells, "batch", embed=embedding),
        "nmi": scib.me.nmi(cells, "cluster", "cell_type"),
        "ari": scib.me.ari(cells, "cluster", "cell_type"),
        "graph_connectivity": scib.me.graph_connectivity(cells, "cell_type"),
        "isolated_labels_asw": scib.me.isolated_labels_asw(cells, **isolated),
        "isolated_labels_f1": scib.me.isolated_labels_f1(
            cells, **isolated, resolutions=list(batch_mixing.RESOLUTIONS)
        ),
    }
    return found


def graph_lisi(cells: anndata.AnnData, embedding: str, helper: pathlib.Path) -> dict[str, float]:
    """The original's LISI, of neighbours by shortest paths, which a compiled helper finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scib, "__file__", str(helper / "__init__.py"))
        return {
            "ilisi": scib.me.ilisi_graph(cells, "batch", "embed", use_rep=embedding),
            "clisi": scib.me.clisi_graph(cells, "cell_type", "embed", use_rep=embedding),
        }


def embedded_lisi(cells: anndata.AnnData, embedding: str, folder: pathlib.Path) -> dict[str, float]:
    """The original's LISI of the 89 nearest cells, which it reads from the helper's files."""
    near = neighbourhoods.search(cells.obsm[embedding])
    others = near.indices != np.arange(len(cells))[:, None]
    assert (others.sum(1) == near.n_neighbors - 1).all()
    for what, x in (("indices", near.indices + 1), ("distances", near.distances)):
        table = pd.DataFrame(x[others].reshape(len(cells), -1), index=np.arange(len(cells)) + 1)
        table.to_csv(folder / f"near_{what}_0.txt", header=False)
    found = {}
    for score, column in (("ilisi", "batch"), ("clisi", "cell_type")):
        codes, kinds = cells.obs[column].cat.codes.to_numpy(), cells.obs[column].nunique()
        simpson_N = compute_simpson_index_graph(
            str(folder / "near"), codes, kinds, n_neighbors=near.n_neighbors - 1, perplexity=30
        )
        middle = np.median(1 / simpson_N)
        found[score] = (middle - 1 if score == "ilisi" else kinds - middle) / (kinds - 1)
    return found


@pytest.fixture(scope="module")
def helper(tmp_path_factory) -> pathlib.Path:
    """Folder of the original's helper, compiled here: the one it ships needs a newer libc."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile scib's helper with")
    folder = tmp_path_factory.mktemp("helper")
    (folder / "knn_graph").mkdir()
    source = pathlib.Path(scib.__file__).parent / "knn_graph" / "knn_graph.cpp"
    program = folder / "knn_graph" / "knn_graph.o"
    subprocess.run(["g++", "-O3", "-std=c++11", source, "-o", program], check=True)
    return folder


def kbet(cells: anndata.AnnData, embedding: str, nearest) -> float:
    """kBET as Buettner et al. 2019 test it, per label as in scIB, of the neighbours given.

    Of each cell and its neighbours: a chi-squared test of their batches against the label's.
    """
    graph = scanpy.pp.neighbors(cells, n_neighbors=50, use_rep=embedding, copy=True)
    rates = []
    for label in cells.obs["cell_type"].cat.categories:
        part = graph[graph.obs["cell_type"] == label].copy()
        k = int(np.clip(len(part) / part.obs["batch"].nunique() // 4, 10, 70))
        if part.obs["batch"].nunique() < 2 or len(part) <= k:
            continue
        pieces = connected_components(part.obsp["connectivities"])[1]
        large = np.bincount(pieces)[pieces] >= (3 * k if pieces.max() else 0)
        if large.mean() < 0.75:
            rates.append(0.0)
            continue
        share = part.obs["batch"][large].value_counts(normalize=True)
        accepted = []
        for piece in np.unique(pieces[large]):
            these = part[pieces == piece].copy()
            for row in these.obs["batch"].to_numpy(str)[nearest(these, k)]:
                seen = np.array([(row == name).sum() for name in share.index])
                due = share.to_numpy() * len(row)
                p_value = stats.chi2.sf(((seen - due) ** 2 / due).sum(), len(due) - 1)
                accepted.append(p_value >= 0.05)
        rates.append(np.mean(accepted))
    return float(np.mean(rates))


def mapped(part: anndata.AnnData, k: int) -> np.ndarray:
    """The cell and the k nearest in a diffusion map, all of it at once and dense."""
    edges_MxM = part.obsp["connectivities"].toarray().astype(np.float64)
    kernel_MxM = edges_MxM / np.outer(edges_MxM.sum(0), edges_MxM.sum(0))
    root = np.sqrt(kernel_MxM.sum(0))
    values, vectors = np.linalg.eigh(kernel_MxM / np.outer(root, root))
    largest = np.argsort(-np.abs(values))[:100]
    values, vectors = values[largest], vectors[:, largest]
    values[1:] /= 1 - values[1:]
    values[0] = 1.0
    return np.argsort(cdist(vectors * values, vectors * values), axis=1)[:, : k + 1]


def walked(part: anndata.AnnData, k: int) -> np.ndarray:
    """The cell and the k - 1 that most walks lead to, which the original passes to R's kBET."""
    return np.c_[np.arange(len(part)), diffusion_nn(part, k=k)[:, : k - 1]]


@pytest.fixture(scope="module", params=SETS)
def cells(request, real_data) -> anndata.AnnData:
    return read(real_data, request.param)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_scores_are_those_of_scib(cells, embedding, helper):
    here, there = ours(cells, embedding), theirs(cells, embedding)
    for score in EQUAL:
        if here[score] is None:
            assert np.isnan(there[score]), score
        else:
            assert here[score] == pytest.approx(there[score], abs=1e-4), score
    # Of the same neighbours the same; of those that each takes, what `integration` says.
    near, graph = embedded_lisi(cells, embedding, helper), graph_lisi(cells, embedding, helper)
    for score in ("ilisi", "clisi"):
        assert here[score] == pytest.approx(near[score], abs=1e-4), score
    assert here["clisi"] == pytest.approx(graph["clisi"], abs=CLOSE)
    assert here["ilisi"] == pytest.approx(graph["ilisi"], abs=0.25)
    assert here["kbet"] == pytest.approx(kbet(cells, embedding, mapped), abs=5e-3)
    assert here["kbet"] == pytest.approx(kbet(cells, embedding, walked), abs=0.15)
