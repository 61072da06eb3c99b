"""Fixtures that several test files share: the folder of real cells, where there is one."""

import os
import pathlib

import pytest

# The one setting that names a folder of real cells; unset and absent: those tests skip.
REAL_DATA = pathlib.Path(
    os.environ.get("SCALING_REAL_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """Folder of real `.h5ad` files, set by SCALING_REAL_DATA."""
    if not (REAL_DATA / "kang_ifnb_2800.h5ad").exists():
        pytest.skip(f"no real cells at {REAL_DATA}; set SCALING_REAL_DATA to their folder")
    return REAL_DATA
