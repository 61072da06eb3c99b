"""Stores of counts, one file a family; each reads the same from its own layout on disk.

anndata_store `.h5ad`, `.zarr`    loom `.loom`    tenx, mtx  10x `.h5`, `matrix.mtx` folders
soma          SOMA experiments
tokenised     Hugging Face `datasets` of ready tokens, which have no counts

A module of a family of counts has three functions:
recognises(path)          whether the path is one of its stores, by its name or its files
tables(path, layer)       `contents.Contents`: annotations of cells and genes, names of matrices
matrix(path, name, obs)   context of one matrix, open: with `.shape` (cells, genes) and read by
                          `[start:stop]`; `by_cell.Triplets` where its order is not by cell

All raise ValueErrors that name the path and what to do.
"""
