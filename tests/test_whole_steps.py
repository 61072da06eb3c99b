"""Whole steps that are timed: the public BERT computes our loss, input is read as by a run."""

import dataclasses
import importlib.util
import types

import jax
import numpy as np
import pytest

from configs import quickstart
from kernels.cab import masked_lm_loss
from scaling.corpus import bench_report
from scaling.pretrain import batches, feeding, masking, step, whole_steps
from scaling.pretrain.model import RankEncoder
from scaling.settings import Settings

V = 60


def tiny(**model):
    config = quickstart.get_config()
    config.model.update({"length": 24, "layers": 2, "width": 8, "feed_forward": 12, **model})
    config.train.batch = 8
    return Settings.from_config(config)


def weights_for_torch(params: dict, layers: int) -> dict:
    """Our weights by the public BERT's names."""

    def dense(name, ours):
        kernel, width = ours["kernel"], params["embedding"].shape[1]
        if kernel.ndim == 3:  # D x H x E of queries, keys and values; H x E x D of the way out
            kernel = kernel.reshape(width, width)
        return {f"{name}.weight": kernel.T, f"{name}.bias": ours["bias"].reshape(-1)}

    def norm(name, ours):
        return {f"{name}.weight": ours["scale"], f"{name}.bias": ours["bias"]}

    head = "cls.predictions"
    found = {
        "bert.embeddings.word_embeddings.weight": params["embedding"],
        "bert.embeddings.position_embeddings.weight": params["positions"],
        "bert.embeddings.token_type_embeddings.weight": params["token_type"][None],
        f"{head}.bias": params["bias"],
        f"{head}.decoder.weight": params["embedding"],
        f"{head}.decoder.bias": params["bias"],
        **norm("bert.embeddings.LayerNorm", params["norm"]),
        **dense(f"{head}.transform.dense", params["dense"]),
        **norm(f"{head}.transform.LayerNorm", params["head_norm"]),
    }
    for n in range(layers):
        ours, name = params[f"layer_{n}"], f"bert.encoder.layer.{n}"
        for part in ("query", "key", "value"):
            found |= dense(f"{name}.attention.self.{part}", ours["attention"][part])
        found |= dense(f"{name}.attention.output.dense", ours["attention"]["out"])
        found |= norm(f"{name}.attention.output.LayerNorm", ours["attention_norm"])
        found |= dense(f"{name}.intermediate.dense", ours["expand"])
        found |= dense(f"{name}.output.dense", ours["contract"])
        found |= norm(f"{name}.output.LayerNorm", ours["output_norm"])
    return found


def test_the_public_bert_with_our_weights_has_our_loss():
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("transformers")
    run = tiny().run
    drawn = step.initial_params(0, run.model, V)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: np.float32(x + 0.3 * rng.normal(size=x.shape)), drawn)
    tokens = whole_steps.full_cells(V, 24, 3)
    tokens[1, 15:] = 0
    cells = masking.mask_cells(tokens, 0, np.zeros(3), np.arange(3), V, run.masking)
    states = RankEncoder(run.model, V).apply({"params": params}, cells.inputs_BxL, cells.slots_BxM)
    out = masked_lm_loss(states, params["embedding"], params["bias"], cells.labels_BxM)

    labels = np.full(tokens.shape, -100)
    for row, slots, genes in zip(labels, cells.slots_BxM, cells.labels_BxM, strict=True):
        row[slots[genes >= 0]] = genes[genes >= 0]
    model = whole_steps.bert(dataclasses.asdict(run.model), V)
    ours = weights_for_torch(params, run.model.layers)
    model.load_state_dict({name: torch.tensor(np.array(x)) for name, x in ours.items()})
    read = {"input_ids": cells.inputs_BxL, "attention_mask": tokens > 0, "labels": labels}
    loss = model(**{name: torch.tensor(x).long() for name, x in read.items()}).loss.item()
    assert (cells.labels_BxM >= 0).sum() > 4
    np.testing.assert_allclose(out.cross_entropy / out.positions, loss, 1e-5)
    sizes = sum(x.size for x in jax.tree.leaves(params))
    assert sizes == sum(x.numel() for x in model.parameters())


def test_bert_drops_what_we_drop():
    pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = tiny(dropout=0.3, attention_dropout=0.1).run.model
    model = whole_steps.bert(dataclasses.asdict(settings), V)
    assert model.training and model.config._attn_implementation == "sdpa"
    dropout = {m.p for m in model.modules() if type(m).__name__ == "Dropout"}
    assert dropout == {0.3, 0.1} and model.bert.encoder.layer[0].attention.self.dropout.p == 0.1


@pytest.mark.slow
def test_both_ways_are_timed_in_fresh_processes_and_divided():
    pytest.importorskip("torch"), pytest.importorskip("transformers")
    row = whole_steps.against_bert(dataclasses.asdict(tiny().run), V, 2, 1)
    assert row["ratio"] == row["rates"]["ours"] / row["rates"]["plain"] > 0
    assert row["goal"] == 2.5 and row["batch"] == 2 and set(row["versions"]) == {
        "torch", "transformers"
    }
    assert all(1e8 < peak < 4e9 for peak in row["memory"].values())
    assert "GB of the process at its peak" in bench_report.table({"model": row})


@pytest.mark.parametrize("absent", ["torch", "transformers"])
def test_without_the_public_bert_the_row_says_so(absent, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else name)
    row = whole_steps.against_bert({}, V, 4, 1)
    assert row == {"left_out": f"needs {absent}: pip install '.[bench]'"}


def test_an_accelerator_is_not_compared_with_a_cpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "JAX_PLATFORMS=cpu" in whole_steps.against_bert({}, V, 4, 1)["left_out"]


def test_steps_read_a_new_batch_each_or_one_that_stays(tiny_corpus, monkeypatch):
    read, steps = [], []
    batch_of, train = batches.Batches.__getitem__, step.train_step

    def watched(state, cells, *arguments):
        steps.append(np.asarray(cells.inputs_BxL).tobytes())
        return train(state, cells, *arguments)

    monkeypatch.setattr(feeding, "TURN", 3)
    monkeypatch.setattr(step, "train_step", watched)
    monkeypatch.setattr(
        batches.Batches, "__getitem__", lambda self, n: read.append(n) or batch_of(self, n)
    )
    monkeypatch.setattr(feeding.time, "perf_counter", iter(range(1000)).__next__)
    settings = dataclasses.asdict(tiny(layers=1).run)
    taken, count = feeding.step_seconds(str(tiny_corpus.folder), settings, 8, 2)
    assert count == 3 and [len(seconds) for seconds in taken.values()] == [2, 2, 2]
    constant, of_input = steps[0], [steps[5:8], steps[11:]]
    assert set(steps[:5] + steps[8:11]) == {constant}
    assert len({*of_input[0], constant}) == 4 and of_input[0] == of_input[1]
    assert max(read) < 3 + 1 + 8 + 2


def test_titles_name_the_models_and_the_corpora_are_theirs(tiny_corpus, tmp_path, monkeypatch):
    made, models = [], {"large": tiny(), "small": tiny(layers=1)}
    rows = whole_steps.rows(
        models, V, 8, lambda of, folder: made.append((of, folder)) or tiny_corpus, tmp_path, 3
    )
    assert list(rows) == ["model: mlm of large, 8 cells", *(
        f"input: {name}, 8 cells" for name in models
    )]

    def run(function, *arguments):
        assert function is feeding.step_seconds
        folder, settings, *rest = arguments
        assert settings["model"]["layers"] == 1 and settings["objective"]["name"] == "mlm"
        assert (folder, *rest) == (str(tiny_corpus.folder), 8, 3) and made
        return {"ours": [4.0, 2.0], "plain": [1.9, 3.0], "input": [0.1, 0.2]}, 10

    monkeypatch.setattr(whole_steps, "alone", types.SimpleNamespace(run=run))
    row = rows["input: small, 8 cells"]()
    assert made == [(models["small"], tmp_path / "small")]
    assert row["ratio"] == 0.95 and row["goal"] == 0.97 and row["batches/s"] == 100
    assert row["rates"]["ours"] == 5 and row["steps"] == 10
    assert "5.000 steps/s" in bench_report.table({"input": row})
