"""Geneformer's weights <-> a run's folder, such as pretraining leaves."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import safetensors.numpy

from scaling import provenance
from scaling.corpus import dictionaries
from scaling.corpus.shards import VOCABULARY
from scaling.corpus.vocabulary import Vocabulary
from scaling.geneformer.configs import CONFIG
from scaling.geneformer.files import Weights, has_place, read
from scaling.pretrain import checkpoint, loop, masking
from scaling.pretrain.model import ModelSettings

UNREAD = "unread.safetensors"  # tensors of the file that no output depends on
# Geneformer's own masking, under which `experiments.evaluate` scores it.
MASKING = masking.MaskingSettings(rate=0.15, mask_share=0.8, random_share=0.1, draw_special=False)


def into_run(
    weights: Weights, vocabulary: Vocabulary, folder: pathlib.Path, source: str
) -> dict:
    """Makes a run that can be embedded with, evaluated and fine-tuned; whole or not at all.

    Args:
      weights: with a head for masked genes.
      vocabulary: with the tokens that the model was trained on.
      folder: of the run; must not exist.
      source: where the weights come from, for the record.

    Returns:
      What `settings.json` holds.

    Raises:
      ValueError: a head of classes, a vocabulary of another size, or a folder that exists.
    """
    if weights.kind not in ("masked_lm", "cab"):
        raise ValueError(
            f"{source} has a head for classes of {weights.kind}, and a run one for masked genes; "
            "give the pretrained model it was fine-tuned from"
        )
    _check(weights, vocabulary, source)
    if folder.exists():
        raise ValueError(f"{folder} exists; give another --out, or remove it")
    params = jax.tree.map(jax.numpy.asarray, weights.params)
    sums = hashlib.sha256(np.asarray(checkpoint.fingerprint(params)).tobytes())
    content = {"hash": sums.hexdigest()[:12], "source": source, "vocabulary": vocabulary.hash}
    content |= {"commit": provenance.commit(), "packages": provenance.packages()}
    content |= {"model": dataclasses.asdict(weights.model), "masking": dataclasses.asdict(MASKING)}
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    vocabulary.save(partial / VOCABULARY)
    checkpoint.save_params(partial / loop.CHECKPOINTS, content["hash"], params)
    if weights.unread:
        safetensors.numpy.save_file(weights.unread, partial / UNREAD)
    (partial / loop.SETTINGS).write_text(json.dumps(content, indent=1))
    partial.rename(folder)
    return content


def of_run(given: pathlib.Path, kind: str = "masked_lm") -> tuple[Weights, Vocabulary]:
    """Weights of a run's last checkpoint, or of RUN/checkpoints/STEP, and its vocabulary.

    Args:
      given: the run.
      kind: "masked_lm", or "cab" for the published CAB checkpoints' layout.

    Raises:
      ValueError: there is no run or no such checkpoint, or it is another model than Geneformer.
    """
    params, model, vocabulary = encoder(given)
    if not has_place(model):
        raise ValueError(
            f"{given} has model.encoding={model.encoding} and model.latents={model.latents}, for "
            "which Geneformer's weights have no place; give a run with ranks and without latents"
        )
    path = loop.run_and_step(given)[0] / UNREAD
    unread = safetensors.numpy.load_file(path) if path.exists() else {}
    params = jax.tree.map(np.asarray, params)
    return Weights(model, len(vocabulary), kind, params, unread=unread), vocabulary


def encoder(given: pathlib.Path, words: str = "") -> tuple[dict, ModelSettings, Vocabulary]:
    """Parameters and settings of an encoder, and the vocabulary of its tokens.

    Args:
      given: a run, one of its checkpoints/STEP, or a folder with Geneformer's weights.
      words: of weights, a folder of Geneformer's dictionaries or a vocabulary.json; "" for the one
        that lies beside them.

    Raises:
      ValueError: neither; or a vocabulary that a run has already, that weights lack, or that has
        another number of tokens than they.
    """
    if not (given / CONFIG).is_file():
        if words:
            raise ValueError(f"{given} is a run and has its vocabulary; leave --vocabulary out")
        folder, step = loop.run_and_step(given)
        held = json.loads((folder / loop.SETTINGS).read_text())
        if "model" not in held:
            raise ValueError(
                f"{folder} holds no run; give the run's folder, or of a fine-tuning its classifier"
            )
        model = ModelSettings(**held["model"])
        vocabulary = Vocabulary.load(folder / VOCABULARY)
        return loop.load_params(folder, model, len(vocabulary), step), model, vocabulary
    weights, vocabulary = read(given), words_of(given, words)
    _check(weights, vocabulary, given)
    unused = {"bias": np.zeros(len(vocabulary), np.float32)}  # the head's, where there is none
    params = unused | weights.params.get("encoder", weights.params)
    return params, weights.model, vocabulary


def words_of(weights: pathlib.Path, words: str) -> Vocabulary:
    """The vocabulary of a folder of weights: the given one, or that which lies beside them.

    Raises:
      ValueError: there is neither.
    """
    if not words and not (weights / VOCABULARY).is_file():
        raise ValueError(
            f"{weights} holds weights without a vocabulary; give --vocabulary, the folder of "
            "Geneformer's dictionaries that they were trained with, or a vocabulary.json"
        )
    return dictionaries.given(words or str(weights / VOCABULARY))


def _check(weights: Weights, vocabulary: Vocabulary, source) -> None:
    if len(vocabulary) != weights.vocabulary:
        raise ValueError(
            f"{source} has {weights.vocabulary} tokens, the vocabulary {len(vocabulary)}; give "
            "that of the weights' own version (V1 has 25,426 tokens, V2 20,275)"
        )
