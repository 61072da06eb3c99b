"""The fields of `config.study` -> the axes of a study, every value checked."""

import dataclasses
import math
import re

from scaling.corpus.encodings import ENCODINGS
from scaling.corpus.subsets import SCHEMES
from scaling.pretrain import ladder
from scaling.pretrain.masking import STRATEGIES
from scaling.pretrain.objectives import NAMES, VARIANTS
from scaling.pretrain.supervision import SupervisionSettings

SHAPE = ("layers", "width", "heads", "feed_forward")  # what a rung of the ladder sets
# Data of models of other lengths, their floors and their scores could not be compared.
FIXED = ("length",)


@dataclasses.dataclass(frozen=True)
class GridSettings:
    """The runs of a study: all combinations of the axes; the fields of `config.study`.

    An axis that is () has one value, that of the config's own field.

    Attributes:
      sizes: unique cells of the nested subsets: counts from 2; fractions of the training pool,
        floats above 0 to 1.0; ladders "first:last:steps", evenly spaced in the logarithm from
        the first count to the last, as "100:1e6:9".
      objectives: names of objectives.
      seeds: each is the subset, init and mask seed of its runs, or a triple of the three.
      schemes: of the subsets, from `subsets.SCHEMES`.
      steps, epochs: durations; a value of either is one value of the axis.
      encoders: rungs of the ladder by name, or pairs of a name and fields of `config.model`.
      variants: of cab.
      weights: lambdas of cab, each for every variant, or as (variant, lambda) for one.
      maskings: strategies that runs train with, of `config.masking`; all are scored with the same
        masks, `MaskingSettings.of_scores`.
      masking_rates: likewise.
      encodings: of the models' input, `encodings.ENCODINGS`.
      supervisions: values of `config.supervision.columns`.
    """

    sizes: tuple[int | float | str, ...]
    objectives: tuple[str, ...]
    seeds: tuple[int | tuple[int, int, int], ...]
    schemes: tuple[str, ...] = ("random",)
    steps: tuple[int, ...] = ()
    epochs: tuple[float, ...] = ()
    encoders: tuple[str | tuple[str, dict], ...] = ()
    variants: tuple[str, ...] = ()
    weights: tuple[float | tuple[str, float], ...] = ()
    maskings: tuple[str, ...] = ()
    masking_rates: tuple[float, ...] = ()
    encodings: tuple[str, ...] = ()
    supervisions: tuple[tuple[str | tuple[str, float], ...], ...] = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            values, optional = getattr(self, field.name), field.default == ()
            if not isinstance(values, tuple) or len(set(map(repr, values))) != len(values):
                raise ValueError(
                    f"study.{field.name} is {values!r}; give distinct values as a tuple, (1, 2)"
                )
            if not values and not optional:
                raise ValueError(f"study.{field.name} is (); give at least one value, as (1,)")
        self.cells(None)
        if not all(_whole(seed) for seeds in self.seed_triples() for seed in seeds):
            raise ValueError(
                f"study.seeds is {self.seeds}; give whole numbers from 0, or triples of them, "
                "(subset seed, init seed, mask seed)"
            )
        known = {"objectives": NAMES, "schemes": SCHEMES, "variants": VARIANTS}
        known |= {"maskings": STRATEGIES, "encodings": ENCODINGS}
        for field, names in known.items():
            if unknown := set(getattr(self, field)) - set(names):
                raise ValueError(f"study.{field} has {sorted(unknown)}; there are {names}")
        if not all(_whole(steps) and steps for steps in self.steps):
            raise ValueError(f"study.steps is {self.steps}; give whole numbers from 1")
        if not all(_above_zero(epochs) for epochs in self.epochs):
            raise ValueError(f"study.epochs is {self.epochs}; give numbers above 0")
        names = list(self.overrides())
        if len(set(names)) != len(self.encoders) or not all(map(_fit_for_a_folder, names)):
            raise ValueError(
                f"study.encoders has the names {names}; give each another, of letters, digits, "
                "'.' and '_'"
            )
        for weight in self.weights:
            variant, *value = weight if isinstance(weight, tuple) else (VARIANTS[0], weight)
            if variant not in VARIANTS or len(value) != 1 or not _above_zero(*value):
                raise ValueError(
                    f"study.weights has {weight!r}; give numbers above 0, or pairs of a variant "
                    f"and one, as ('plain', 200.0); variants are {VARIANTS}"
                )

    def cells(self, pool: int | None) -> tuple[int, ...]:
        """The sizes as counts, rising and distinct.

        Args:
          pool: cells of the training pool; None where not known: fractions are left out.

        Raises:
          ValueError: a size that is neither count, fraction nor ladder, or below 2 cells.
        """
        found = set()
        for size in self.sizes:
            if isinstance(size, str):
                found.update(_ladder(size))
            elif isinstance(size, int) and size >= 2:
                found.add(size)
            elif isinstance(size, float) and 0 < size <= 1:
                if pool is not None and round(size * pool) < 2:
                    raise ValueError(f"study.sizes has {size}: below 2 cells of a pool of {pool}")
                found.update([round(size * pool)] if pool is not None else [])
            else:
                raise ValueError(
                    f"study.sizes has {size!r}; give counts from 2, fractions of the training "
                    "pool as 0.1 or 1.0, or ladders of counts as '100:1e6:9' (first:last:steps)"
                )
        return tuple(sorted(found))

    def seed_triples(self) -> list[tuple[int, int, int]]:
        """(subset seed, init seed, mask seed) of each of the seeds."""
        return [s if isinstance(s, tuple) and len(s) == 3 else (s, s, s) for s in self.seeds]

    def overrides(self) -> dict[str, dict]:
        """Fields of `config.model` that each encoder sets, by its name.

        Raises:
          ValueError: no rung of the ladder, no pair, or a field that all encoders must share.
        """
        found = {}
        for encoder in self.encoders:
            if isinstance(encoder, str):
                rung = ladder.rung(encoder)
                found[encoder] = {name: getattr(rung, name) for name in SHAPE}
                continue
            if not isinstance(encoder, tuple) or list(map(type, encoder)) != [str, dict]:
                raise ValueError(
                    f"study.encoders has {encoder!r}; give rungs of the ladder, as '1m', or pairs "
                    "of a name and fields of config.model, as ('small', {'layers': 2})"
                )
            name, fields = encoder
            if shared := sorted(set(fields) & set(FIXED)):
                raise ValueError(f"study.encoders: {name!r} sets {shared}; make a study of each")
            found[name] = fields
        return found

    def supervised(self) -> dict[str, tuple]:
        """Supervised columns by a name of them: "no", "cell_type", "cell_type+sex0.01"."""
        if wrong := [of for of in self.supervisions if not isinstance(of, tuple)]:
            raise ValueError(
                f"study.supervisions has {wrong[0]!r}; each value is a tuple of columns, as () or "
                "('cell_type',)"
            )
        # Checked before they are named: a weight may be anything.
        return {supervision_name(SupervisionSettings(of).columns): of for of in self.supervisions}

    def weights_of(self, variant: str, own: float) -> list[float]:
        """Lambdas of a variant; `own`, the config's, where the study names none.

        Raises:
          ValueError: it has none, while others do.
        """
        found = [w for w in self.weights if not isinstance(w, tuple)]
        found += [w for name, w in (w for w in self.weights if isinstance(w, tuple))
                  if name == variant and w not in found]  # fmt: skip
        if self.weights and not found:
            raise ValueError(f"study.weights is {self.weights}, without one for {variant!r}")
        return found or [own]


def supervision_name(columns: tuple) -> str:
    """Of `config.supervision.columns`, for folders and tables."""
    pairs = ((c if isinstance(c, tuple | list) else (c, None)) for c in columns)
    named = (c if weight is None else f"{c}{weight:g}" for c, weight in pairs)
    return "+".join(named) or "no"


def _whole(number) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _above_zero(number) -> bool:
    real = isinstance(number, int | float) and not isinstance(number, bool)
    return real and 0 < number < math.inf


def _fit_for_a_folder(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._]*", name) is not None


def _ladder(text: str) -> list[int]:
    """Counts of a ladder "first:last:steps"."""
    try:
        first, last, steps = (float(part) for part in text.split(":"))
        whole = all(number.is_integer() for number in (first, last, steps))
        if not (whole and 2 <= first < last and steps >= 2):
            raise ValueError
    except ValueError as error:
        raise ValueError(
            f"study.sizes has {text!r}; a ladder is first:last:steps in whole numbers, as "
            "'100:1e6:9', first from 2, last above it, steps from 2"
        ) from error
    return [round(first * (last / first) ** (k / (steps - 1))) for k in range(int(steps))]
