"""Weights in and out of Geneformer's files: exact both ways, and the transformers library's states.

Parity needs `pip install -e '.[bench]'`; it skips where transformers or torch is absent.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from configs import gf_v1_10m, gf_v2_104m, gf_v2_316m
from scaling.corpus.encodings import Cells
from scaling.corpus.vocabulary import Vocabulary
from scaling.evaluate import embed
from scaling.geneformer import files, runs
from scaling.geneformer.configs import config_of
from scaling.geneformer.tensors import POOLER, TYPES, WORDS
from scaling.pretrain import loop, step
from scaling.pretrain.model import ModelSettings, RankEncoder

ROOT = pathlib.Path(__file__).parents[1]
MODEL = ModelSettings(
    layers=3, width=16, heads=4, feed_forward=24, length=20, activation="relu", dropout=0.02,
    norm_epsilon=1e-12, attention_dropout=0.02,
)  # fmt: skip
V, NAMES = 50, ("T cell", "B cell", "NK", "B", "other")
TOKENS = np.array([[3, 4, 9, 12, 0, 0], [7, 6, 5, 2, 11, 30]], np.int32)
ARCHITECTURES = {"BertForMaskedLM": "masked_lm", "BertForSequenceClassification": "cells",
                 "BertForTokenClassification": "genes"}  # fmt: skip


def weights(kind="masked_lm", model=MODEL, seed=0) -> files.Weights:
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: step.initial_params(0, model, V))
    params = jax.tree.map(lambda of: draw.normal(0, 0.3, of.shape).astype(np.float32), shapes)
    if kind in ("cells", "genes"):
        for name in ("bias", "dense", "head_norm"):
            del params[name]
        params = {"encoder": params}
        for name, rows in (("pooler", 16), ("logits", 5))[kind == "genes" :]:
            kernel, bias = draw.normal(size=(16, rows)), draw.normal(size=rows)
            params[name] = {"kernel": kernel.astype("f4"), "bias": bias.astype("f4")}
    labels = () if kind in ("masked_lm", "cab") else NAMES
    return files.Weights(model, V, kind, params, labels)


def vocabulary(genes=V - 2) -> Vocabulary:
    return Vocabulary(tuple(f"ENSG{k:011d}" for k in range(genes)), np.ones(genes))


def assert_equal(one: files.Weights, other: files.Weights):
    assert (one.model, one.vocabulary, one.kind) == (other.model, other.vocabulary, other.kind)
    assert one.labels == other.labels
    assert set(one.unread) == set(other.unread)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    jax.tree.map(np.testing.assert_array_equal, one.unread, other.unread)


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[bench]'")
    return pytest.importorskip("transformers", reason="parity needs transformers")


def saved(transformers, architecture: str, folder, activation="relu"):
    """A random model of the transformers library and its files."""
    import torch

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=16, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=24, max_position_embeddings=20, hidden_act=activation,
        layer_norm_eps=1e-12, pad_token_id=0, id2label=dict(enumerate(NAMES)),
    )  # fmt: skip
    model = getattr(transformers, architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    return model


def outputs(model):
    """Hidden states and logits of the transformers library."""
    import torch

    tokens = torch.tensor(TOKENS, dtype=torch.long)
    with torch.no_grad():
        found = model(tokens, attention_mask=(tokens != 0).long(), output_hidden_states=True)
    return [state.numpy() for state in found.hidden_states], found.logits.numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_librarys_files_come_back_tensor_for_tensor(transformers, architecture, tmp_path):
    model = saved(transformers, architecture, tmp_path / "theirs")
    found = files.read(tmp_path / "theirs")
    assert found.kind == ARCHITECTURES[architecture]
    assert found.labels == (() if found.kind == "masked_lm" else NAMES)
    files.write(found, tmp_path / "ours")
    one, other = (
        safetensors.numpy.load_file(tmp_path / name / files.WEIGHTS) for name in ("theirs", "ours")
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
    again = getattr(transformers, architecture).from_pretrained(tmp_path / "ours").eval()
    assert not found.labels or again.config.id2label == dict(enumerate(NAMES))
    np.testing.assert_array_equal(outputs(again)[1], outputs(model)[1])


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new", "silu"])
def test_states_and_logits_are_the_librarys(transformers, activation, tmp_path):
    model = saved(transformers, "BertForMaskedLM", tmp_path, activation)
    found = files.read(tmp_path)
    encoder, given = RankEncoder(found.model, V), {"params": found.params}
    real = (TOKENS != 0)[..., None]
    states, logits = outputs(model)
    for ours, theirs in zip(encoder.apply(given, TOKENS, method="encode"), states, strict=True):
        np.testing.assert_allclose(ours * real, theirs * real, atol=1e-5)
    slots = np.tile(np.arange(6), (2, 1))
    read = encoder.apply(given, TOKENS, slots) @ found.params["embedding"].T
    np.testing.assert_allclose((read + found.params["bias"]) * real, logits * real, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset,tokens", [(gf_v1_10m, 25_426), (gf_v2_104m, 20_275), (gf_v2_316m, 20_275)]
)
def test_states_of_the_published_sizes_are_the_librarys(transformers, preset, tokens, tmp_path):
    import torch

    model = ModelSettings(**preset.get_config().model.to_dict())
    config = transformers.BertConfig(**config_of(model, tokens, "masked_lm", (), 2))
    torch.manual_seed(0)
    theirs = transformers.BertForMaskedLM(config).eval()
    theirs.save_pretrained(tmp_path)
    found = files.read(tmp_path)
    assert found.model == model
    cell = np.random.default_rng(0).permutation(np.arange(4, tokens))[None, :300].astype(np.int32)
    with torch.no_grad():
        wanted = theirs(torch.tensor(cell, dtype=torch.long), output_hidden_states=True)
    given = {"params": found.params}
    states = RankEncoder(model, tokens).apply(given, cell, method="encode")
    for ours, theirs_BxLxD in zip(states, wanted.hidden_states, strict=True):
        np.testing.assert_allclose(ours, theirs_BxLxD, atol=1e-4)
    read = RankEncoder(model, tokens).apply(given, cell, np.arange(300)[None])
    logits = read @ found.params["embedding"].T + found.params["bias"]
    np.testing.assert_allclose(logits, wanted.logits, atol=1e-4)


@pytest.mark.parametrize("kind", ["masked_lm", "cab", "cells", "genes"])
def test_what_is_written_is_read_again(kind, tmp_path):
    given = weights(kind)
    files.write(given, tmp_path)
    assert_equal(files.read(tmp_path), given)
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_tensors_that_no_output_depends_on_are_kept(tmp_path):
    more = {TYPES: np.ones((1, 16), np.float32), POOLER[0]: np.ones((16, 16), np.float32)}
    given = dataclasses.replace(weights(), unread=more)
    files.write(given, tmp_path)
    assert json.loads((tmp_path / files.CONFIG).read_text())["type_vocab_size"] == 2
    assert_equal(files.read(tmp_path), given)
    runs.into_run(files.read(tmp_path), vocabulary(), tmp_path / "run", "here")
    found, words = runs.of_run(tmp_path / "run")
    assert_equal(found, given)
    assert words.hash == vocabulary().hash


def test_the_published_cab_layout_has_its_names(tmp_path):
    files.write(weights("cab"), tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / files.WEIGHTS)
    heads = {name for name in tensors if not name.startswith("bert.")}
    assert heads == {"transform.dense.weight", "transform.dense.bias", "transform.LayerNorm.weight",
                     "transform.LayerNorm.bias", "decoder.weight", "bias"}  # fmt: skip
    np.testing.assert_array_equal(tensors["decoder.weight"], tensors[WORDS])
    tensors["decoder.weight"] = tensors["decoder.weight"] + 1
    safetensors.numpy.save_file(tensors, tmp_path / files.WEIGHTS)
    with pytest.raises(ValueError, match="decoder.weight differs from"):
        files.read(tmp_path)


def test_the_factor_of_a_transferred_width_goes_into_the_head(tmp_path):
    given = weights(model=dataclasses.replace(MODEL, base_width=4))
    files.write(given, tmp_path)
    found = files.read(tmp_path)
    assert found.model == MODEL
    slots = np.tile(np.arange(6), (2, 1))
    ours, theirs = (
        RankEncoder(of.model, V).apply({"params": of.params}, TOKENS, slots)
        for of in (given, found)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    files.write(weights(), tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / files.WEIGHTS)
    del tensors["bert.encoder.layer.2.output.dense.bias"]
    tensors["adapter.weight"] = np.ones(3, np.float32)
    tensors["cls.predictions.bias"] = np.ones(7, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / files.WEIGHTS)
    with pytest.raises(ValueError) as told:
        files.read(tmp_path)
    for words in ("missing: bert.encoder.layer.2.output.dense.bias (16,)",
                  "extra: adapter.weight (3,)", "cls.predictions.bias is (7,), (50,) expected"):
        assert words in str(told.value)


@pytest.mark.parametrize(
    "field,value,words",
    [("model_type", "gpt2", "model_type is 'gpt2'"), ("hidden_act", "tanh", "hidden_act"),
     ("position_embedding_type", "relative_key", "absolute"), ("vocab_size", None, "vocab_size"),
     ("num_hidden_layers", None, "num_hidden_layers"), ("architectures", ["GPT"], "'GPT'"),
     ("id2label", {"0": "a", "2": "b"}, "id2label names 0, 2; name the classes from 0 on")],
)  # fmt: skip
def test_models_that_the_encoder_is_not_are_refused(field, value, words, tmp_path):
    files.write(weights("cells"), tmp_path)
    config = json.loads((tmp_path / files.CONFIG).read_text())
    if value is None:
        del config[field]
    else:
        config[field] = value
    (tmp_path / files.CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        files.read(tmp_path)


def test_pickles_pointers_and_damage_are_told_apart(tmp_path):
    files.write(weights(), tmp_path)
    path = tmp_path / files.WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="download it again"):
        files.read(tmp_path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        files.read(tmp_path)
    path.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin is a pickle.*safe_serialization"):
        files.read(tmp_path)


def test_a_run_of_weights_is_one_that_can_be_read(tmp_path):
    given = weights()
    made = runs.into_run(given, vocabulary(), tmp_path / "run", "here")
    held = json.loads((tmp_path / "run" / loop.SETTINGS).read_text())
    assert held == json.loads(json.dumps(made)) and held["model"]["width"] == 16
    found = loop.load_params(tmp_path / "run", MODEL, V)
    jax.tree.map(np.testing.assert_array_equal, found, given.params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    other = runs.into_run(weights(seed=1), vocabulary(), tmp_path / "other", "here")
    assert other["hash"] != made["hash"]
    with pytest.raises(ValueError, match="exists"):
        runs.into_run(given, vocabulary(), tmp_path / "run", "here")


def test_other_tokens_and_heads_are_refused(tmp_path):
    with pytest.raises(ValueError, match="here has 50 tokens, the vocabulary 49"):
        runs.into_run(weights(), vocabulary(47), tmp_path / "run", "here")
    with pytest.raises(ValueError, match="head for classes of cells"):
        runs.into_run(weights("cells"), vocabulary(), tmp_path / "run", "here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["masked_lm", "cab", "cells", "genes"])
def test_weights_of_every_head_embed_as_their_run_does(kind, tmp_path):
    given = weights(kind)
    files.write(given, tmp_path / "weights")
    vocabulary().save(tmp_path / "vocabulary.json")
    params, model, words = runs.encoder(tmp_path / "weights", str(tmp_path / "vocabulary.json"))
    assert (model, words.genes) == (MODEL, vocabulary().genes)
    cells = [Cells(np.pad(TOKENS, ((0, 0), (0, 14))))]
    found = embed.embed_cells(params, model, -2, cells, 2)
    inner = {"bias": np.zeros(V)} | given.params.get("encoder", given.params)
    states = RankEncoder(MODEL, V).apply({"params": inner}, TOKENS[1:], method="encode")
    np.testing.assert_allclose(found[1], states[-2][0].mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="weights without a vocabulary; give --vocabulary"):
        runs.encoder(tmp_path / "weights")
    vocabulary().save(tmp_path / "weights" / "vocabulary.json")
    assert runs.encoder(tmp_path / "weights")[2].hash == vocabulary().hash
    vocabulary(40).save(tmp_path / "other.json")
    with pytest.raises(ValueError, match="50 tokens, the vocabulary 42"):
        runs.encoder(tmp_path / "weights", str(tmp_path / "other.json"))
    if kind == "masked_lm":
        runs.into_run(given, vocabulary(), tmp_path / "run", "here")
        np.testing.assert_array_equal(
            embed.embed_cells(runs.encoder(tmp_path / "run")[0], model, -2, cells, 2), found
        )
        with pytest.raises(ValueError, match="leave --vocabulary out"):
            runs.encoder(tmp_path / "run", "vocabulary.json")


def convert(*asked: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.convert", *asked]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_converts_both_ways(tmp_path):
    files.write(weights(), tmp_path / "in")
    vocabulary().save(tmp_path / "vocabulary.json")
    given, run = f"--weights={tmp_path / 'in'}", tmp_path / "run"
    without = "holds weights without a vocabulary; give"
    for asked, words in (((), "give --weights"), ((given,), without)):
        refused = convert(*asked, f"--out={run}")
        assert refused.returncode == 2 and words in refused.stderr
        assert "Traceback" not in refused.stderr
    done = convert(given, f"--vocabulary={tmp_path / 'vocabulary.json'}", f"--out={run}")
    assert done.returncode == 0 and "a run (hash" in done.stdout, done.stderr
    done = convert(f"--checkpoint={run}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert_equal(files.read(tmp_path / "out"), weights())
    again = convert(f"--weights={tmp_path / 'out'}", f"--out={tmp_path / 'again'}")
    assert again.returncode == 0 and "3 layers of width 16, 50 tokens" in again.stdout, again.stderr
    assert runs.of_run(tmp_path / "again")[1].hash == vocabulary().hash
    for taken in (run, tmp_path / "out", tmp_path / "vocabulary.json"):
        before = sorted(tmp_path.rglob("*"))
        refused = convert(f"--checkpoint={run}", f"--out={taken}")
        assert refused.returncode == 2 and f"{taken} exists; give another" in refused.stderr
        assert sorted(tmp_path.rglob("*")) == before
