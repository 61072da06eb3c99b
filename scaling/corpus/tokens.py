"""The tokens that are no genes, unless a vocabulary has more; those of genes follow."""

PAD, MASK = 0, 1
SPECIAL = ("<pad>", "<mask>")
START, END = "<cls>", "<eos>"  # stand around a cell where a vocabulary has both
