"""Does scale help single-cell foundation models? The library, in the order data flows.

corpus     raw counts -> rank tokens on disk (NumPy only, never JAX)
pretrain   tokens -> checkpoints
evaluate   checkpoints + cells -> scores
analyse    scores over runs -> curves, claims, report
geneformer Hugging Face weights <-> runs
sweeps     axes of a study -> its jobs, their processes, the manifest
scoring    one run's weights, held-out cells -> rows of scores
study      one config -> all of the above

Letters in names and shapes, everywhere:
B cells in a batch      L rank positions of a cell     M masked positions of a cell
V vocabulary            D model width                  H attention heads
F feed-forward width    Z latents (MAM)
N layers (in the model), cells (in tables of cells)
"""
