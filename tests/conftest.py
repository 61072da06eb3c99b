"""Fixtures that several test files share: real cells, where there are any, and a tiny corpus."""

import os
import pathlib

import pytest

# Before jax is imported: eight simulated devices, so that every run of the tests is sharded.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("PJRT_NPROC", "16")  # threads, or eight devices may wait for each other

import hypothesis
import jax

from configs import default
from scaling.corpus import build
from scaling.corpus.simulate import Simulation, simulate
from scaling.settings import Settings

# Machines are shared: no draw fails for the time it took.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# The one setting that names a folder of real cells; unset and absent: those tests skip.
REAL_DATA = pathlib.Path(
    os.environ.get("SCALING_REAL_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data")
)


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go():
    """What a file's tests compiled, which would add up to gigabytes in a process of all tests."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """Folder of real `.h5ad` files, set by SCALING_REAL_DATA."""
    if not (REAL_DATA / "kang_ifnb_2800.h5ad").exists():
        pytest.skip(f"no real cells at {REAL_DATA}; set SCALING_REAL_DATA to their folder")
    return REAL_DATA


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """Corpus of 240 simulated cells, 4 types and 4 donors (one held out), about 250 genes."""
    folder = tmp_path_factory.mktemp("corpus")
    cells = Simulation(cells=240, genes=250, cell_types=4, donors=4, batches=2, programs=10)
    simulate(folder / "cells.h5ad", cells)
    config = default.get_config()
    config.data.h5ad = str(folder / "cells.h5ad")
    config.data.cells_per_shard = 100
    return build.build(Settings.from_config(config).data, folder / "corpus")
