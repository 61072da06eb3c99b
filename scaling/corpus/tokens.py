"""The tokens that are no genes; those of genes follow."""

PAD, MASK = 0, 1
SPECIAL = ("<pad>", "<mask>")
