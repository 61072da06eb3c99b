"""A simulated study in; its verdicts, headline, figures and report against what was simulated."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from scaling.analyse import plots, sections
from scaling.analyse.axes import apart
from scaling.analyse.claims import CAB, judge_claims
from scaling.analyse.fits import fit_table
from scaling.analyse.headline import headline
from scaling.analyse.plots import draw_all
from scaling.analyse.report import analyse
from scaling.analyse.trends import tidy

SIZES = (400, 1600, 6400, 18000)
SEEDS = (0, 1, 2)
MASKED = {  # score -> value of MLM read from P at u = decades above 400 cells
    "loss": lambda u: 3.0 + 4.0 * 10 ** (-0.4 * u),
    "accuracy": lambda u: 0.08 + 0.06 * u,
    "repeat_unmasked": lambda u: 0.06 - 0.008 * u,
    "repeat_masked": lambda u: 0.12 - 0.01 * u,
    "repeat": lambda u: 0.18 - 0.018 * u,
    "uniqueness": lambda u: 0.70 + 0.03 * u,
    "coverage": lambda u: 0.05 + 0.10 * u,
    "entropy_ratio": lambda u: 0.6 + 0.06 * u,
}
UNTRAINED = {"loss": 10.0, "repeat": 0.9, "repeat_masked": 0.9}
EMBEDDED = {
    "cell_types": {"knn_accuracy": 0.72, "knn_macro_f1": 0.60, "logistic_accuracy": 0.80,
                   "logistic_macro_f1": 0.70},
    "batch_mixing": {"avg_bio": 0.45, "asw_label": 0.5, "nmi": 0.5, "ari": 0.35,
                     "batch_score": 0.7, "pcr_score": 0.3, "average_batch_score": 0.5},
}  # fmt: skip


def simulated_scores(sizes=SIZES, seeds=SEEDS, datasets=("kang", "mixology")) -> pd.DataFrame:
    """A scores table in which: masked accuracy rises, CAB repeats less and adds 0.03 accuracy,
    MLM's batch mixing rises and CAB's does not, cell-type scores do not move."""
    rng, rows = np.random.default_rng(7), []

    def add(model, kind, cells, seed, dataset, task, score, value, **more):
        rows.append(
            dict(model=model, kind=kind, cells=cells, tokens=cells * 700, exposures=cells * 8,
                 subset_seed=seed, init_seed=None if kind != "pretrained" else seed, mask_seed=0,
                 dataset=dataset, task=task, score=score, value=value, note="", n=1000,
                 positions=None, read_from=None, run=f"{model}-{cells}-{seed}",
                 converged=cells < max(sizes) or seed != 1 if kind == "pretrained" else None,
                 config_hash="c0ffee", commit="abc", packages="numpy 2") | more
        )  # fmt: skip

    for dataset in datasets:
        runs = [(m, "pretrained", c, s) for m in ("mlm", "cab") for c in sizes for s in seeds]
        runs += [("untrained", "baseline", 0, s) for s in seeds]
        for model, kind, cells, seed in runs:
            u = np.log10(cells / min(sizes)) if cells else 0
            for score, curve in MASKED.items():
                for read_from in "PQ":
                    for positions in ("mask", "selected"):
                        value = (
                            curve(u) * rng.normal(1, 0.02) if cells else UNTRAINED.get(score, 0.01)
                        )
                        if model == "cab" and score == "accuracy":
                            value += 0.03
                        if model == "cab" and score.startswith("repeat"):
                            value *= 0.6
                        if model == "cab" and score == "uniqueness":
                            value += 0.1
                        if score == "repeat_unmasked" and read_from == "Q":
                            value = 0.0
                        add(model, kind, cells, seed, dataset, "masked_genes", score, value,
                            positions=positions, read_from=read_from)  # fmt: skip
        runs += [(m, "baseline", c, s) for m in ("hvg", "pca") for c in sizes for s in seeds]
        for model, kind, cells, seed in runs:
            u = np.log10(cells / min(sizes)) if cells else 0
            for task, scores in EMBEDDED.items():
                for score, base in scores.items():
                    slope = 0.06 * u if (model, task) == ("mlm", "batch_mixing") else 0
                    lift = {"hvg": 0.1, "pca": 0.15, "untrained": -0.1}.get(model, 0)
                    value = base + slope + lift + rng.normal(0, 0.01) * (cells > 0)
                    add(model, kind, cells, seed, dataset, task, score, value)
        for floor, level in (("copy_input", 0.0), ("most_frequent", 0.05)):
            for positions in ("mask", "selected"):
                add(floor, "floor", 0, None, dataset, "masked_genes", "accuracy", level,
                    positions=positions)  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def rows():
    return simulated_scores()


@pytest.fixture(scope="module")
def study(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    text = analyse(
        rows[rows["dataset"] == "kang"], folder, {"command": "study --x=<1>", "commit": "abc123"}
    )
    return folder, text


def test_the_report_tells_how_cab_changes_the_curve(study):
    folder, _ = study
    gaps = json.loads((folder / "fits.json").read_text())["differences"]
    [gap] = [g for g in gaps if (g["score"], g["read_from"]) == ("accuracy", "P")]
    offsets = [of for of in gap["parameters"].values() if of["what"] == "offset"]
    assert gap["other"] == "cab" and offsets
    assert "Does the objective change the curve?" in (folder / "report.html").read_text()


def test_verdicts_are_those_that_were_simulated(rows):
    verdicts = {c["number"]: c["verdict"] for c in judge_claims(rows)}
    wanted = {1: "supported", 3: "not tested", 4: "supported", 5: "not tested", 6: "supported",
              8: "supported"}  # fmt: skip
    assert {number: verdicts[number] for number in wanted} == wanted
    assert sorted(verdicts) == list(range(1, 9))


def test_models_below_the_most_frequent_gene_judge_nothing(rows):
    floored = rows.copy()
    floored.loc[floored["model"] == "most_frequent", "value"] = 0.99
    verdicts = {c["verdict"] for c in judge_claims(floored)}
    assert verdicts == {"undecided", "not tested"}
    caution = "No trained model beats the most frequent gene"
    assert caution in headline(floored, [], judge_claims(floored))
    assert caution not in headline(rows, [], judge_claims(rows))


def test_evidence_names_data_sets_and_values(rows):
    evidence = {c["number"]: c["evidence"] for c in judge_claims(rows)}
    assert "kang, mlm read from P: +0.06" in evidence[1]
    assert "mixology, cab read from Q: +0.0" in evidence[1]
    assert "at 400 cells" in evidence[6] and "at 18,000 cells" in evidence[6]
    assert "repeat read from P" in evidence[4] and "uniqueness read from Q" in evidence[4]


def test_reversed_runs_reverse_the_verdicts(rows):
    swapped = rows.assign(model=rows["model"].replace({"mlm": "cab", "cab": "mlm"}))
    verdicts = {c["number"]: c["verdict"] for c in judge_claims(swapped)}
    assert [verdicts[n] for n in (1, 4, 6, 8)] == ["supported"] + ["contradicted"] * 3


def test_each_variant_of_cab_has_its_own_verdicts(rows, tmp_path):
    cab, mlm = rows[rows["model"] == "cab"], rows[rows["model"] == "mlm"]
    none = mlm.assign(model="cab", variant="plain", run="cab_plain-" + mlm["run"])
    both = apart(pd.concat([rows.assign(variant=rows["model"].map({"cab": "recalibrated"})), none]))
    claims = judge_claims(both)
    verdicts = {(c["number"], c["of"]): c["verdict"] for c in claims}
    assert [verdicts[4, of] for of in CAB.values()] == ["supported", "undecided"]
    assert [verdicts[6, of] for of in CAB.values()] == ["supported", "undecided"]
    assert len(claims) == 12 and len(both) == len(rows) + len(mlm) and len(cab) == len(none)
    text = headline(both, [], claims)
    assert "CAB (plain variant) minus MLM" in text and "4 (recalibrated variant)" in text
    analyse(both[(both["dataset"] == "kang") & (both["score"] == "accuracy")], tmp_path, {})
    page = (tmp_path / "report.html").read_text()
    assert "<b>CAB, plain variant</b>" in page and "<td>CAB, plain variant</td>" in page


@pytest.mark.parametrize(
    "lifted,verdict", [((0.3, 0.3), "supported"), ((-0.3, -0.3), "contradicted"),
                       ((0.3, -0.3), "undecided")]
)  # fmt: skip
def test_models_are_set_against_the_best_correction(rows, lifted, verdict):
    mixing = rows[(rows["model"] == "mlm") & (rows["task"] == "batch_mixing")]
    scores = zip(("avg_bio", "average_batch_score"), lifted, strict=True)
    parts = [rows]
    for score, lift in scores:
        part = mixing[mixing["score"] == score]
        top = part[part["cells"] == max(SIZES)].groupby("dataset")["value"].mean()
        value = part["dataset"].map(top) + lift
        parts += [part.assign(model="harmony", kind="baseline", value=value),
                  part.assign(model="scvi", kind="baseline", value=value - 1.0)]  # fmt: skip
    claims = {c["number"]: c for c in judge_claims(pd.concat(parts))}
    assert claims[5]["verdict"] == verdict
    assert "mlm minus harmony" in claims[5]["evidence"] and "scvi" not in claims[5]["evidence"]


def test_data_sets_that_disagree_leave_a_claim_undecided(rows):
    there = (rows["dataset"] == "kang") & (rows["task"] == "masked_genes")
    mixed = rows.copy()
    names = mixed.loc[there, "model"].replace({"mlm": "cab", "cab": "mlm"})
    mixed.loc[there, "model"] = names
    assert judge_claims(mixed)[3]["verdict"] == "undecided"
    falling = rows.copy()
    falling.loc[there, "value"] -= 0.2 * np.log10(rows.loc[there, "cells"].clip(lower=1))
    assert judge_claims(falling)[0]["verdict"] == "undecided"


def test_claim_two_turns_on_whether_every_downstream_trend_rises(rows):
    raised, lowered = rows.copy(), rows.copy()
    downstream = rows["task"].isin(["cell_types", "batch_mixing"]) & (rows["cells"] > 0)
    decades = np.log10(rows.loc[downstream, "cells"])
    raised.loc[downstream, "value"] += 0.2 * decades
    lowered.loc[downstream & (rows["model"] == "mlm"), "value"] -= 0.3 * decades
    assert judge_claims(raised)[1]["verdict"] == "contradicted"
    assert judge_claims(lowered)[1]["verdict"] == "supported"


def test_one_gain_less_at_one_size_contradicts_claim_six_only_when_told_apart(rows):
    there = (rows["model"] == "cab") & (rows["score"] == "accuracy") & (rows["cells"] == 1600)
    none, worse = rows.copy(), rows.copy()
    none.loc[there, "value"] -= 0.03
    worse.loc[there, "value"] -= 0.10
    assert judge_claims(none)[5]["verdict"] == "undecided"
    assert judge_claims(worse)[5]["verdict"] == "contradicted"


def test_curves_of_subset_schemes_are_told_apart(rows):
    here = rows[(rows["dataset"] == "kang") & (rows["score"] == "logistic_macro_f1")]
    untrained = here["model"] == "untrained"
    scheme = np.where(untrained, None, "random")
    sketch = here.assign(scheme="sketch", value=here["value"] + 0.1)[~untrained]
    both = pd.concat([here.assign(scheme=scheme), sketch])
    table = tidy(both)
    assert set(table["dataset"]) == {"kang", "kang (sketch subsets)"}
    counts = table[table["model"] == "untrained"].groupby("dataset").size()
    assert counts.tolist() == [untrained.sum()] * 2
    pd.testing.assert_frame_equal(tidy(table), table)
    means = {f["dataset"]: f["means"] for f in fit_table(both) if f["model"] == "mlm"}
    gap = np.subtract(means["kang (sketch subsets)"], means["kang"])
    assert gap == pytest.approx(0.1)
    pd.testing.assert_frame_equal(tidy(here), tidy(here.assign(scheme=scheme)))


def test_claims_ignore_selected_positions(rows):
    kept = rows[rows["positions"] != "selected"]
    assert judge_claims(kept) == judge_claims(rows)


def test_headline_is_short_and_says_what_was_simulated(study):
    lines = study[1].splitlines()
    assert len(lines) <= 8
    assert "24 pretrained models; sizes: 4 (400 to 18,000 cells" in lines[0]
    assert "2 not converged" in lines[0]
    accuracy = next(line for line in lines if line.startswith("Masked genes"))
    assert "mlm up +0.0" in accuracy and "cab up +0.0" in accuracy
    embeddings = next(line for line in lines if line.startswith("Embeddings"))
    assert "macro-F1 pca 0.85 > hvg 0.80" in embeddings
    assert "most frequent gene 0.050" in study[1] and "untrained 0.010" in study[1]


def test_report_is_self_contained_escaped_and_complete(study):
    folder, text = study
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 8  # with residuals
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert "study --x=&lt;1&gt;" in page and "abc123" in page
    assert text.splitlines()[1] in page  # no character of that line needs escaping
    assert "2 of 24 runs had not converged" in page
    assert "mlm, converged runs alone" in page and "Residuals: Cell types, kang" in page
    for words in ("floor: most frequent gene", "HVG (baseline)", "saturating", "S_inf ="):
        assert words in page
    assert [p for p in folder.rglob("*") if p.name.endswith(".part")] == []


def test_figures_and_fits_are_written(study):
    folder, _ = study
    names = sorted(p.name for p in (folder / "plots").iterdir())
    kinds = ("batch_mixing_kang", "cell_types_kang", "masked_genes_kang_P", "masked_genes_kang_Q")
    assert names == sorted(f"{kind}{end}.png" for kind in kinds for end in ("", "_residuals"))
    record = json.loads((folder / "fits.json").read_text())
    assert len(record["claims"]) == 8 and record["provenance"]["commit"] == "abc123"
    wanted = {"score": "accuracy", "model": "mlm", "positions": "mask", "read_from": "P"}
    accuracy = next(f for f in record["fits"] if wanted.items() <= f.items())
    assert accuracy["form"] == "saturating" and set(accuracy["parameters"]) == {"S_inf", "D0", "s"}


def test_curves_stand_with_and_without_unconverged_runs(rows):
    part = rows[(rows["score"] == "accuracy") & (rows["model"] == "mlm") & (rows["cells"] > 0)]
    kept = part[part["converged"] != False]  # noqa: E712
    whole, alone = fit_table(part), fit_table(kept)
    assert len(kept) < len(part) and all(fit["without_unconverged"] is None for fit in alone)
    for one, other in zip(whole, alone, strict=True):
        found = one["without_unconverged"]
        assert found == {name: other[name] for name in found}
        assert found["parameters"] != one["parameters"] and found["points"] < one["points"]


def test_residuals_are_scores_minus_their_curves(rows):
    part = rows[(rows["dataset"] == "kang") & (rows["score"] == "logistic_macro_f1")]
    fits = [f for f in fit_table(part) if f["model"] in ("mlm", "pca")]
    fits[0]["band"]["mid"] = [0.25] * len(fits[0]["band"]["x"])
    left = plots._residuals(tidy(part), fits)
    assert set(left["model"]) == {"mlm", "pca"}
    given = part.loc[(part["model"] == fits[0]["model"]) & (part["cells"] > 0), "value"]
    found = left.loc[left["model"] == fits[0]["model"], "value"]
    np.testing.assert_allclose(found, given.to_numpy(float) - 0.25)


def test_ranks_are_those_of_the_largest_size_over_all_scores(rows):
    page = sections.ranks(tidy(rows))
    lines = re.findall(r'<tr><td>(.*?)</td><td class="n">(\d\.\d)', page)
    assert lines[0] == ("PCA (baseline)", "1.0") and lines[-1] == ("untrained model", "5.0")
    assert "[" in page and "kang, AvgBIO" in page and "<td class=\"n\">1</td>" in page
    fewer = rows[(rows["model"] != "hvg") | (rows["task"] != "cell_types")]
    assert "and so unranked: HVG (baseline)" in sections.ranks(tidy(fewer))
    assert sections.ranks(tidy(rows[rows["model"] == "mlm"])) == ""


def test_curves_of_selected_positions_are_not_drawn(rows, tmp_path):
    part = rows[(rows["score"] == "accuracy") & (rows["dataset"] == "kang")]
    part = part[part["read_from"] != "Q"].copy()
    part.loc[part["positions"] == "selected", "value"] += 0.2
    fits = fit_table(part)
    masked = [f for f in fits if f["positions"] == "mask"]
    assert len(masked) < len(fits)
    drawn = [draw_all(part, some, tmp_path)[0]["path"].read_bytes() for some in (fits, masked)]
    assert drawn[0] == drawn[1]


def test_two_sizes_give_no_curve_and_say_so(tmp_path):
    few = simulated_scores(sizes=(400, 1600), seeds=(0,), datasets=("kang",))
    few = few[few["task"] == "cell_types"]
    text = analyse(few, tmp_path, {})
    assert "too few sizes for curves" in text
    page = (tmp_path / "report.html").read_text()
    assert "No curve was fitted" in page and "2 distinct sizes" in page
    assert {c["verdict"] for c in judge_claims(few)} == {"undecided", "not tested"}


def test_floors_alone_are_reported_without_models(rows):
    floors = rows[rows["kind"] == "floor"]
    assert fit_table(floors) == []
    text = headline(floors, [], judge_claims(floors))
    assert "no pretrained model" in text and "copied input 0.000" in text


def test_scores_that_could_not_be_computed_are_left_out(rows, tmp_path):
    part = rows[(rows["task"] == "batch_mixing") & (rows["dataset"] == "kang")].copy()
    part["value"] = part["value"].astype(object).where(part["score"] != "pcr_score", None)
    analyse(part, tmp_path, {})
    page = (tmp_path / "report.html").read_text()
    words = re.sub(r"base64,[^\"]*", "", page)
    assert "0 distinct sizes" in words and ">nmi<" in words and ">nan" not in words
    assert ">pcr_score</th>" not in words


def test_empty_table_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match="scores table is empty"):
        analyse(rows.iloc[:0], tmp_path, {})
