"""The ladder's one rule -> encoders from 0.1M to 1B parameters, each named by what it costs.

Rule: heads of width 64, F = 4 D, and N = D / 64 layers, two at least, because embeddings are read
from the layer before the last. 12 and 18 of these heads are the shapes of Geneformer's V2 models.
"""

import dataclasses

from scaling.pretrain import flops, masking
from scaling.pretrain.model import ModelSettings

HEADS = (1, 2, 3, 4, 6, 8, 12, 18, 28)  # of the rungs
HEAD_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Rung:
    """An encoder of the ladder, by its number of heads."""

    heads: int

    @property
    def width(self) -> int:
        """D."""
        return HEAD_WIDTH * self.heads

    @property
    def layers(self) -> int:
        """N."""
        return max(2, self.heads)

    @property
    def feed_forward(self) -> int:
        """F."""
        return 4 * self.width

    @property
    def parameters(self) -> int:
        """Non-embedding parameters, as `model.count_parameters` counts them.

        Of a layer: four D x D and two D x F matrices with a bias each, and two norms.
        """
        D, F = self.width, self.feed_forward
        return self.layers * (4 * (D * D + D) + (D * F + F) + (F * D + D) + 2 * 2 * D)

    def flops(self, length: int = 2_048, rate: float = 0.15, vocabulary: int = 25_426) -> int:
        """Model FLOPs of a training step with mlm for one cell; by default with V1's L and V.

        Args:
          length: L.
          rate: share of positions selected.
          vocabulary: V.
        """
        sizes = self.layers, self.width, self.heads, self.feed_forward
        model = ModelSettings(*sizes, length, "relu", dropout=0.0, norm_epsilon=1e-12)
        slots = masking.capacity(length, rate)
        return flops.of_cell(model, length, slots, vocabulary).model

    @property
    def name(self) -> str:
        """Its non-embedding parameters to one digit, in millions or billions: "0.1m", "1b"."""
        rounded = float(f"{self.parameters:.0e}")
        return f"{rounded / 1e9:g}b" if rounded >= 1e9 else f"{rounded / 1e6:g}m"


def rungs() -> dict[str, Rung]:
    """All rungs by name, the smallest first."""
    return {rung.name: rung for rung in map(Rung, HEADS)}


def rung(name: str) -> Rung:
    """The rung of a name.

    Raises:
      ValueError: there is none of this name.
    """
    known = rungs()
    if name not in known:
        raise ValueError(f"the ladder has no rung {name!r}; there are {', '.join(known)}")
    return known[name]


def table() -> str:
    """All rungs as a table in Markdown."""
    titles = "rung", "layers", "width", "heads", "feed-forward", "non-embedding parameters"
    lines = [f"| {' | '.join(titles)} | TFLOP of a step, per cell |", "|---" * 7 + "|"]
    for name, r in rungs().items():
        cells = name, r.layers, r.width, r.heads, f"{r.feed_forward:,}", f"{r.parameters:,}"
        cells += (f"{r.flops() / 1e12:.3g}",)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
