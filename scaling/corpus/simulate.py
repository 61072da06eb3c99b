"""Settings and a seed in; an `.h5ad` of simulated raw single-cell counts with its labels out."""

import dataclasses
import os
import pathlib

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

_COUNTS = ("cells", "genes", "cell_types", "donors", "batches", "programs")


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What to simulate. "Log" is the natural logarithm; an SD of 0 switches an effect off.

    Raises:
        ValueError: a setting is negative, of the wrong kind, or leaves a label without cells.
    """

    cells: int = 10_000  # cells in the file
    genes: int = 4_000  # genes in the file; some may end up without a count
    cell_types: int = 12  # labels in obs["cell_type"], the first the commonest
    donors: int = 12  # people, each measured in one batch and holding every cell type
    batches: int = 3  # technologies, each measuring donors / batches people
    programs: int = 40  # sets of genes that rise and fall together
    genes_per_program: float = 0.04  # share of all genes that one program moves
    depth: float = 800.0  # counts per cell, the median over cells; too few leave cells empty
    library_sd: float = 0.42  # SD of log counts per cell, within a batch
    batch_depth_sd: float = 0.25  # SD of log depth, between batches
    base_sd: float = 1.7  # SD of log abundance, between genes
    type_sd: float = 0.24  # change of a program's activity (RMS), parent type to child type
    state_sd: float = 0.3  # SD of program activity, between cells of one type
    batch_sd: float = 0.3  # SD of a gene's log shift, between batches
    donor_sd: float = 0.18  # SD of a gene's log shift, between donors of one batch
    rarest: float = 0.04  # abundance of the rarest cell type, as a share of the commonest's
    dispersion: float = 0.05  # variance / mean^2 of a very abundant gene within one state
    dispersion_rise: float = 0.2  # added to it at a mean of 1 count, falling as 1 / sqrt(mean)
    seed: int = 0  # of every draw

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 1 if field.name in _COUNTS else 0
            whole = isinstance(field.default, int)
            kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
            if isinstance(value, bool) or not isinstance(value, kinds) or not np.isfinite(value):
                kind = "whole" if whole else "finite"
                raise ValueError(f"{field.name}={value!r}: give a {kind} number")
            if value < least:
                raise ValueError(f"{field.name}={value!r}: give {least} or more")
        if self.depth == 0:
            raise ValueError("depth=0 leaves every cell empty: give counts per cell, e.g. 800")
        for name in ("genes_per_program", "rarest"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a share in (0, 1]")
        if self.donors < self.batches:
            raise ValueError(f"donors={self.donors} cannot fill batches={self.batches}, as each "
                             "donor is in one: give at least as many donors as batches")
        if self.cells < (pairs := self.cell_types * self.donors):
            raise ValueError(f"cells={self.cells} cannot put each of cell_types={self.cell_types} "
                             f"into each of donors={self.donors}: give at least {pairs} cells")


def _stream(settings: Simulation, *key: int) -> np.random.Generator:
    """Random numbers of their own for each key; keys in use: (0,) labels, (1,) genes, (2, cell)."""
    return np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=key))


def _draw_labels(settings: Simulation) -> tuple[np.ndarray, np.ndarray]:
    """Cell type and donor of each cell: two int arrays (cells,), every pair at least once."""
    rng = _stream(settings, 0)
    types, donors = settings.cell_types, settings.donors
    common_to_rare = np.geomspace(1.0, settings.rarest, types)
    share = common_to_rare * rng.lognormal(0.0, 0.4, (donors, types))
    share *= rng.lognormal(0.0, 0.3, (donors, 1)) / share.sum(1, keepdims=True)
    once = np.arange(donors * types)
    rest = rng.choice(once.size, settings.cells - once.size, p=share.ravel() / share.sum())
    donor, cell_type = np.divmod(rng.permutation(np.concatenate([once, rest])), types)
    return cell_type, donor


def _draw_type_activity(rng: np.random.Generator, settings: Simulation) -> np.ndarray:
    """Mean program activity of each type, (cell_types, programs), log units.

    Types form a binary tree, each one step of fixed length from its parent's activity: so
    relatives share programs. The root is the last and rarest type, as progenitors are.
    """
    activity = np.zeros((settings.cell_types, settings.programs))
    for child in range(1, settings.cell_types):
        step = rng.standard_normal(settings.programs)
        step *= settings.type_sd * np.sqrt(settings.programs) / np.linalg.norm(step)
        activity[child] = activity[(child - 1) // 2] + step
    return activity[::-1]


def _centred(rng: np.random.Generator, size: int, sd: float) -> np.ndarray:
    """Normal draws (size,) shifted and scaled to mean 0 and this very SD; one draw gives 0."""
    draws = rng.standard_normal(size)
    return sd * (draws - draws.mean()) / draws.std() if size > 1 else np.zeros(1)


def _draw_counts(
    settings: Simulation, cell_type: np.ndarray, donor: np.ndarray
) -> sparse.csr_matrix:
    """Counts, CSR int32 (cells, genes): first what all cells share, then cell by cell."""
    genes, programs, rng = settings.genes, settings.programs, _stream(settings, 1)
    activity = _draw_type_activity(rng, settings)
    weights = rng.standard_normal((programs, genes))
    weights *= rng.random((programs, genes)) < settings.genes_per_program
    base = rng.normal(0.0, settings.base_sd, genes)
    shift = rng.normal(0.0, settings.batch_sd, (settings.batches, genes))
    shift = shift[np.arange(settings.donors) % settings.batches]
    shift = shift + rng.normal(0.0, settings.donor_sd, (settings.donors, genes))
    batch_depth = _centred(rng, settings.batches, settings.batch_depth_sd)

    rows = []
    for cell in range(settings.cells):
        own = _stream(settings, 2, cell)  # so that no cell depends on the others
        state = activity[cell_type[cell]] + own.normal(0.0, settings.state_sd, programs)
        abundance = np.exp(base + shift[donor[cell]] + state @ weights)
        library = np.log(settings.depth) + batch_depth[donor[cell] % settings.batches]
        library = np.exp(own.normal(library, settings.library_sd))
        mean = library * abundance / abundance.sum()
        # The smallest mean keeps the shape above 0, where the gamma distribution ends.
        inverse = settings.dispersion + settings.dispersion_rise / np.sqrt(np.maximum(mean, 1e-12))
        if inverse.any():
            mean *= own.standard_gamma(1.0 / inverse) * inverse
        rows.append(sparse.csr_matrix(own.poisson(mean).astype(np.int32)))
    return sparse.vstack(rows, format="csr")


def simulate(path: str | os.PathLike, settings: Simulation) -> None:
    """Write simulated raw counts to `path`, an `.h5ad`; a file already there is replaced.

    A cell's log gene abundances are a base (normal over genes), the shifts of its donor and batch,
    and the activity of gene programs (its type's mean plus its own state) times their weights.
    Scaled to the cell's library size (log-normal) they are means of negative binomial counts, drawn
    as gamma-Poisson, whose dispersion falls with the mean to a floor (after Splatter: Zappia et
    al., Genome Biology 2017). Zeros come from this shallow sampling alone: droplet counts hold
    no more (Svensson, Nature Biotechnology 2020).

    The file: X CSR int32 (cells, genes), compressed; obs cell_type, donor, batch (categorical);
    var_names SIM00001, ... (in no real vocabulary), called gene_id; uns["simulation"] the settings.
    Equal settings give equal content under one version of NumPy on one kind of processor; more
    cells under the same seed come from the same donors, types and genes.
    Memory grows with the non-zero counts.

    Raises:
        OSError: the folder of `path` does not exist or cannot be written; nothing is left there.
    """
    import anndata  # here, as it takes most of a second

    path = pathlib.Path(path)
    cell_type, donor = _draw_labels(settings)
    counts = _draw_counts(settings, cell_type, donor)
    obs = {"cell_type": cell_type, "donor": donor, "batch": donor % settings.batches}
    obs = {label: [f"{label}_{i + 1:02d}" for i in which] for label, which in obs.items()}
    names = [f"cell_{i + 1:07d}" for i in range(settings.cells)]
    genes = pd.Index([f"SIM{i + 1:05d}" for i in range(settings.genes)], name="gene_id")
    obs = pd.DataFrame(obs, index=names, dtype="category")
    about = {"simulation": dataclasses.asdict(settings)}
    data = anndata.AnnData(X=counts, obs=obs, var=pd.DataFrame(index=genes), uns=about)
    # Not ending in .h5ad, so that a search for data never meets the remains of a killed run.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        data.write_h5ad(partial, compression="gzip")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def settings_of(path: str | os.PathLike) -> Simulation:
    """The settings that a file of `simulate` was made with."""
    from anndata.io import read_elem

    with h5py.File(path) as file:
        return Simulation(**read_elem(file["uns/simulation"]))
