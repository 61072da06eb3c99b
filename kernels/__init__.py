"""Kernels of the project's own objectives; each folder has one public `api`."""
