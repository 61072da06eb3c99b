"""What made a result: the commit of the code and the versions of its packages."""

import importlib.metadata
import pathlib
import subprocess

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "anndata", "numpy", "scib-metrics")


def commit() -> str:
    """Commit of the code, marked where the tree was changed; "unknown" outside a repository."""
    here = pathlib.Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD")
    return f"{head}{'+changes' if git('status', '--porcelain', '-uno') else ''}" or "unknown"


def packages() -> str:
    """Versions of those that decide results: `jax 0.10.2, flax ...`."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
