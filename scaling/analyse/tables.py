"""Any table of sizes and scores in; one fitted curve, or one for each group, out.

Rows that say the same run twice, configurations that are mixed in one group, missing sizes and too
few of them are refused with what to do.
"""

import pandas as pd

from scaling.analyse import fits, trends
from scaling.analyse.compare import differences
from scaling.analyse.forms import FORMS, ON_LOGS

TWO_VARIABLES = ("two_variables", "repeated")  # forms that need a second size
ABOUT_RUNS = ("converged", "note")  # columns that are no part of a configuration


def fit_columns(
    table: pd.DataFrame, x: str, y: str, x2: str = "", form: str = "", group: str = "",
    seed: str = "", scale: str = "", draws: int = 1000,
) -> dict:  # fmt: skip
    """Fit y over x.

    Args:
      table: one row per run and score.
      x, y, x2: its columns of sizes, scores and second sizes (of `two_variables` the model size N,
        of `repeated` the exposures).
      form: a name of `forms.FORMS`; "" takes the one of least AICc.
      group: columns, separated by commas; one curve for each of their values.
      seed: column that tells repeated runs of one size apart.
      scale: "log" (Huber on logs), "raw" (least squares), or "" for log where the name of y holds
        "loss" or the form is one of losses.
    Returns: what `fits.fit_curve` returns with x, x2, y; of several groups {"groups": {value:
      that}, "differences": see `compare.differences`}.
    Raises: ValueError that says what is wrong with the table.
    """
    keys = [name.strip() for name in group.split(",") if name.strip()]
    _check_names(table, [x, y, *filter(None, [x2, seed]), *keys], form, x2, scale)
    scale = scale or ("log" if "loss" in y.lower() or form in ON_LOGS else "raw")
    table = _numbers(table, [x, y, *filter(None, [x2])], y)
    groups = table.groupby(keys) if keys else [(("",), table)]
    parts = {", ".join(map(str, values)): part for values, part in groups}
    if not parts:
        raise ValueError(f"no row has a value in --group={group}")
    found, curves = {}, {}
    for name, part in parts.items():
        where = f"{group}={name}: " if name else ""
        _check_rows(part, x, y, x2, seed, keys, where)
        second = part[x2] if x2 else None
        try:
            fit = fits.fit_curve(part[x], part[y], form or None, scale, draws, second)
        except ValueError as error:
            raise ValueError(f"{where}{error}") from error
        if fit["form"] is None:
            raise ValueError(
                f"{where}{fit['reason']}: no curve is fitted; run more sizes, or give a table that "
                "has them"
            )
        _add_notes(fit, part, x, y, seed)
        found[name] = {"x": x, "x2": x2 or None, "y": y} | fit
        curves[name] = (part[x], part[y], second)
    if not keys:
        return found[""]
    return {"group": group, "groups": found,
            "differences": differences(curves, found, scale, draws)}  # fmt: skip


def _check_names(table, names, form, x2, scale) -> None:
    if missing := [name for name in names if name not in table]:
        raise ValueError(f"the table has no column {missing}; it has {list(table.columns)}")
    if form and form not in FORMS:
        raise ValueError(f"--form={form} is unknown; there are {', '.join(FORMS)}")
    if scale not in ("", "raw", "log"):
        raise ValueError(f"--scale={scale} is unknown; there are raw and log")
    if form in TWO_VARIABLES and not x2:
        second = "model sizes" if form == "two_variables" else "exposures (cells x epochs)"
        raise ValueError(f"--form={form} needs --x2, the column of {second}")
    if form and form not in TWO_VARIABLES and x2:
        raise ValueError(f"--form={form} has one size; leave --x2 out, or give a form of two")


def _numbers(table, names, y) -> pd.DataFrame:
    table = table.copy()
    for name in names:
        numbers = pd.to_numeric(table[name], errors="coerce").astype(float)
        words = table[name].notna() & numbers.isna()
        if words.any():
            row = int(words.to_numpy().nonzero()[0][0])
            raise ValueError(
                f"column {name}, row {row + 1}: {table[name].iloc[row]!r} is no number; "
                f"{int(words.sum())} such rows; mend or remove them"
            )
        if name != y and numbers.isna().any():
            row = int(numbers.isna().to_numpy().nonzero()[0][0])
            raise ValueError(
                f"column {name} is empty (NaN) in {int(numbers.isna().sum())} of {len(table)} rows,"
                f" first row {row + 1}; a run without a size has no place on a curve: fill or "
                "remove these rows"
            )
        table[name] = numbers
    return table


def _check_rows(part, x, y, x2, seed, keys, where) -> None:
    """Refuses copies of rows, and what looks like several configurations in one curve."""
    sizes = [x, *filter(None, [x2])]
    scored = part[part[y].notna()]
    copies = scored[scored.duplicated(keep="first")]
    if len(copies):
        first = copies.iloc[0][[*sizes, y]].to_dict()
        raise ValueError(
            f"{where}{len(copies)} rows are copies of another row, first {first}; a copy is no "
            "second seed: remove them (or add a column that tells the runs apart)"
        )
    same = [*sizes, *filter(None, [seed])]
    others = [c for c in part if c not in [*same, y, *keys, *ABOUT_RUNS] and "seed" not in str(c)]
    if seed:
        twice = scored[scored.duplicated(same, keep=False)]
        if len(twice):
            differ = [c for c in others if (twice.groupby(same)[c].nunique() > 1).any()]
            first = twice.iloc[0][same].to_dict()
            what = f"they differ in {differ}" if differ else "no other column tells them apart"
            raise ValueError(
                f"{where}{len(twice)} rows share their size and seed, first {first}; {what}: mixed "
                "configurations or repeated rows; name the column in --group, or keep one of each"
            )
    mixed = [c for c in others if _crosses(scored, c, sizes)]
    if mixed:
        values = {c: scored[c].drop_duplicates().head(3).tolist() for c in mixed}
        raise ValueError(
            f"{where}mixed configurations in one curve: at one size there are several values of "
            f"{values}; name these columns in --group, keep one value, or, if they number repeated "
            "runs, give --seed-column"
        )


def _crosses(rows, column, sizes) -> bool:
    """Whether values of a column meet at one size and recur at others: a setting, not a result."""
    pairs = rows[[*sizes, column]].drop_duplicates()
    recurring = pairs[column].value_counts()
    pairs = pairs[pairs[column].isin(recurring.index[recurring > 1])]
    return bool((pairs.groupby(sizes)[column].nunique() > 1).any())


def _add_notes(fit, part, x, y, seed) -> None:
    note = "single seed: intervals over points"
    if seed and part[seed].nunique() == 1 and note not in fit["flags"]:
        fit["flags"].append(note)
    if fit["scale"] == "raw" and y not in fits.LOWER_IS_BETTER:
        fit["saturation"] = trends.saturation_point(part[x], part[y])
    if "converged" in part and (late := int((part["converged"] == False).sum())):  # noqa: E712
        fit["flags"].append(f"{late} of {len(part)} points from unconverged runs")


def words(found: dict) -> str:
    """What `fit_columns` found, a few lines for each curve."""
    lines = []
    for name, fit in found.get("groups", {"": found}).items():
        start = f"{found['group']}={name}: " if name else ""
        lines.append(f"{start}{fit['form']}, {fit['points']} points at {len(fit['sizes'])} sizes")
        for parameter, value in fit["parameters"].items():
            ends = fit["intervals"].get(parameter)
            lines.append(f"  {parameter} = {_short(value)} {_within(ends)}")
        lines += [f"  flag: {flag}" for flag in fit["flags"]]
    for pair in found.get("differences", []):
        lines.append(f"{pair['other']} minus {pair['one']}, both {pair['form']}")
        for parameter, gap in pair["parameters"].items():
            shown = f"{gap['value']:+.4g} {_within(gap['interval'])}"
            shown += "" if gap["identified"] else ", not identified"
            lines.append(f"  {parameter} ({gap['what']}): {shown}")
    return "\n".join(lines)


def _short(value) -> str:
    return "-" if value is None else f"{value:.4g}"


def _within(ends) -> str:
    return "[no interval]" if ends is None else f"[{_short(ends[0])}, {_short(ends[1])}]"
