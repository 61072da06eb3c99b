"""Every entry point as a user calls it: in its own process, from the project's folder."""

import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = "--config=configs/smoke.py"


def call(stage, *arguments, status=0):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        [sys.executable, "-m", f"experiments.{stage}", *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == status, found.stderr
    return found


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    printed = call("build_corpus", SMOKE, f"--workdir={folder}").stdout
    assert "held out by donor" in printed
    trained = call("pretrain", SMOKE, f"--workdir={folder}", "--config.train.cells=200")
    summary = json.loads(trained.stdout)
    assert summary["steps"] == 25
    assert summary["cells"] == 200
    return folder


@pytest.mark.slow
def test_evaluate_writes_one_row_a_score_beside_baselines(workdir):
    [step] = (workdir / "run" / "checkpoints").glob("[0-9]*")
    arguments = f"--workdir={workdir}", f"--checkpoint={step}", "--tasks=masked_genes,noise"
    printed = call("evaluate", SMOKE, *arguments, "--baselines=pca,majority").stdout
    assert "untrained" in printed and "accuracy from Q" in printed
    assert "80 % of cells noised" in printed and "no score of these tasks: majority" in printed
    lines = (workdir / "scores" / "scores.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    tasks = {(row["model"], row["task"]) for row in rows}
    floors = ("copy_input", "most_frequent")
    both = {(name, "masked_genes") for name in ("model", "untrained", *floors)}
    noised = {(name, "noise") for name in ("model", "untrained", "pca")}
    assert tasks == both | noised  # the majority class is no representation
    assert {row["checkpoint"] for row in rows} == {str(step)}
    pictures = {path.name for path in (workdir / "scores").glob("*.png")}
    assert pictures == {"noise-noised-simulated.png", "noise-thinned-simulated.png"}
    again = call("evaluate", SMOKE, *arguments[:2], "--tasks=masked_genes", "--baselines=").stdout
    assert "noised" not in again
    lines = (workdir / "scores" / "scores.jsonl").read_text().splitlines()
    noise = [row for row in rows if row["task"] == "noise"]
    assert len(lines) == len(rows) and [json.loads(line) for line in lines][: len(noise)] == noise
    other = f"--checkpoint={workdir / 'run'}", "--tasks=masked_genes"
    said = call("evaluate", SMOKE, arguments[0], *other, status=2).stderr
    assert f"has the scores of {step}; give another --workdir" in said
    wrong = call("evaluate", SMOKE, *arguments[:2], "--tasks=masked_gene", status=2).stderr
    assert "evaluate.tasks has ['masked_gene']; there are" in wrong


@pytest.mark.slow
def test_embed_writes_obsm_and_refuses_cells_of_other_genes(workdir, tmp_path):
    h5ad, out = workdir / "simulated.h5ad", tmp_path / "out.h5ad"
    arguments = (f"--checkpoint={workdir / 'run'}", f"--out={out}", "--name=cab")
    call("embed", f"--h5ad={h5ad}", *arguments)
    assert anndata.read_h5ad(out).obsm["X_cab"].shape == (600, 16)
    other = anndata.AnnData(np.ones((3, 2), np.float32))
    other.write_h5ad(tmp_path / "other.h5ad")
    out.unlink()
    found = call("embed", f"--h5ad={tmp_path / 'other.h5ad'}", *arguments, status=2)
    assert "none of its 2 genes" in found.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.h5ad"]


@pytest.mark.slow
def test_embed_tells_cells_without_a_shift_and_settings_of_nothing(workdir, tmp_path):
    h5ad, out = workdir / "simulated.h5ad", tmp_path / "out.h5ad"
    arguments = f"--checkpoint={workdir / 'run'}", f"--h5ad={h5ad}", f"--out={out}"
    gene = json.loads((workdir / "run" / "vocabulary.json").read_text())["genes"][0]
    said = call("embed", *arguments, f"--delete={gene}", f"--overexpress={gene}").stdout
    missing = anndata.read_h5ad(out).obsm["delete_scaling"][gene].isna().sum()
    assert 0 < missing < 600 and f"cells without a shift by delete: {gene} {missing}\n" in said
    out.unlink()
    refused = call("embed", *arguments, "--order=at_once", status=2)
    assert "--read and --order are of --fill" in refused.stderr


def test_a_start_does_not_wait_for_libraries_that_only_some_files_need():
    loaded = "import sys, scaling.settings, scaling.pretrain.bench; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, check=True
    )
    late = {"anndata", "dask", "distributed", "networkx", "matplotlib", "sklearn", "scanpy"}
    assert not late & set(found.stdout.split())


@pytest.mark.slow
def test_an_interrupted_run_ends_as_such(tmp_path):
    command = [sys.executable, "-m", "experiments.pretrain", SMOKE, f"--workdir={tmp_path}"]
    command += ["--config.train.cells=200", "--config.train.steps=100000"]  # more than it gets done
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    # What a shell began in the background ignores SIGINT, and so would what that begins.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    with process:
        said = b""
        while b"run:" not in said:  # then the first step is being compiled
            said += (more := process.stderr.read1())
            assert more, said
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130 and said.rstrip().endswith(b"interrupted")


@pytest.mark.slow
def test_a_field_that_there_is_not_is_named(tmp_path):
    for given, told in (("train.bach=3", "no field 'bach'; did you mean 'batch'?"),
                        ("train.zzzz=3", "no field 'zzzz'; configs/default.py has them all")):
        said = call("study", SMOKE, f"--workdir={tmp_path}", f"--config.{given}", status=2).stderr
        assert said == f"error: the config has {told}\n"


@pytest.mark.slow
def test_study_then_fit_give_the_same_verdict(tmp_path):
    study = call("study", SMOKE, f"--workdir={tmp_path / 'study'}").stdout
    for table in ("scores.jsonl", "scores.csv"):
        out = tmp_path / table.replace(".", "_")
        fit = call("fit", f"--table={tmp_path / 'study' / table}", f"--out={out}").stdout
        assert fit.split("\n\nReport:")[0] == study.split("\n\nReport:")[0]
        assert (out / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_fit_of_named_columns_writes_one_file_or_a_message(tmp_path):
    size = np.repeat(np.geomspace(100, 1e5, 6), 2)
    seed = np.tile([0, 1], 6)
    noise = np.random.default_rng(0).normal(0, 0.003, 12)
    score = 0.5 - (size / 3) ** -0.4 + noise
    table, out = tmp_path / "t.csv", tmp_path / "new" / "fit.json"
    rows = pd.DataFrame({"cells": size, "seed": seed, "score": score})
    rows.to_csv(table, index=False)
    columns = f"--table={table}", "--x=cells", "--y=score"
    printed = call("fit", *columns, "--seed-column=seed", f"--out={out}").stdout
    found = json.loads(out.read_text())
    assert found["form"] == "saturating" and "S_inf = 0." in printed
    assert found["intervals"]["S_inf"][0] < 0.5 < found["intervals"]["S_inf"][1]
    rows.loc[0, "score"] = -1
    rows.to_csv(table, index=False)
    other = tmp_path / "other.json"
    refused = call("fit", *columns, "--scale=log", f"--out={other}", status=2).stderr
    assert f"{table}: 1 of 12 losses are zero or negative" in refused and not other.exists()
    refused = call("fit", *columns, f"--out={tmp_path}", status=2).stderr
    assert "a .json file as --out" in refused
    packed = tmp_path / "t.csv.gz"
    rows.loc[1:].to_csv(packed, index=False)
    columns = f"--table={packed}", *columns[1:]
    assert "saturating" in call("fit", *columns, f"--out={other}").stdout
    packed.write_bytes(packed.read_bytes()[:100])
    refused = call("fit", *columns, f"--out={other}", status=2).stderr
    assert f"{packed}: no readable table of scores" in refused


@pytest.mark.slow
def test_a_study_with_a_failed_run_ends_with_status_1_and_names_it(tmp_path):
    few = ("--config.study.sizes=(50,)", "--config.study.objectives=('cab',)")
    weights = "--config.study.weights=(0.15,3.2e38)"  # the second one's loss is no number
    found = call("study", SMOKE, f"--workdir={tmp_path}", *few, weights, "--at_once=2", status=1)
    assert "1 of 4 jobs failed: cab-w3.2e+38-n50-s0: FloatingPointError" in found.stderr
    assert f"Report: {tmp_path / 'report.html'}" in found.stdout
    assert "Without 1 of 4 jobs" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config.train.learning_rat=1",), "learning_rat"),
        (("--config.model.heads=3",), "no multiple of model.heads"),
        (("--submit=slurm",), "--submit needs timeout_min=MINUTES"),
        (("--submit=slurm,timeout_min",), "give a cluster, then pairs name=value"),
    ],
)
def test_unknown_and_contradictory_settings_end_before_anything_is_made(
    tmp_path, arguments, message
):
    folder = tmp_path / "none"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "experiments.study", SMOKE, f"--workdir={folder}", *arguments]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode != 0
    assert message in found.stderr
    assert not folder.exists()


@pytest.mark.slow
def test_a_rung_trains_by_its_name(tmp_path):
    cells = ("--config.simulation.cells=600", "--config.simulation.genes=500")
    short = ("--config.model.length=32", "--config.train.steps=5", "--config.train.epochs=0")
    few = ("--config.train.batch=8", "--config.train.cells=40", "--config.train.held_out_cells=8")
    config = "--config=configs/ladder.py:0.1m"
    found = call("pretrain", config, f"--workdir={tmp_path}", *cells, *short, *few).stdout
    assert json.loads(found)["non_embedding_parameters"] == 99_968
    found = call("pretrain", "--config=configs/ladder.py:7m", f"--workdir={tmp_path}", status=2)
    assert "there are 0.1m, 0.4m, 1m" in found.stderr


@pytest.mark.slow
def test_a_sweep_of_learning_rates_writes_its_record_and_plot(tmp_path):
    few = ("--config.train.cells=40", "--config.train.steps=5", "--config.train.held_out_cells=8")
    arguments = (SMOKE, f"--workdir={tmp_path}", "--widths=16,32", "--rates=1e-3", *few)
    best = json.loads(call("learning_rate", *arguments).stdout)
    record = json.loads((tmp_path / "learning-rate.json").read_text())
    assert best == record["best"] == {
        "standard": {"16": 1e-3, "32": 1e-3}, "muP": {"16": 1e-3, "32": 1e-3}
    }  # fmt: skip
    assert len(record["rows"]) == 4 and len(list((tmp_path / "runs").iterdir())) == 3
    assert (tmp_path / "learning-rate.png").stat().st_size > 1_000


@pytest.mark.slow
def test_rates_are_swept_at_the_ends_of_the_study(tmp_path):
    arguments = (SMOKE, f"--workdir={tmp_path}", "--ends", "--rates=1e-3,2e-3")
    text = call("learning_rate", *arguments, "--config.train.held_out_cells=8").stdout
    assert text.startswith("1x16, 50 cells: the best rate is 0.00") and "1x16, 200 cells" in text
    record = json.loads((tmp_path / "learning-rate.json").read_text())
    assert len(record["rows"]) == 4 and len(list((tmp_path / "rates").iterdir())) == 4


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_compile_ahead_needs_the_compiler(tmp_path):
    refused = call("compile_ahead", SMOKE, f"--workdir={tmp_path}", "--genes=300", status=2)
    assert "pip install --editable '.[tpu]'" in refused.stderr
    assert not list(tmp_path.iterdir())
