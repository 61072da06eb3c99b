"""Sizes of the model and of a batch -> floating-point operations, and what devices can do."""

from typing import NamedTuple

from scaling.pretrain.expression import MIXED
from scaling.pretrain.model import ModelSettings

# Dense bfloat16 FLOP/s of a device, by its `device_kind`; others have no model FLOPs utilisation.
# NVIDIA: datasheets of H200 and H100 SXM (1,979 TFLOP/s with sparsity, half of it without) and of
# A100 (312 without). TPU: cloud.google.com/tpu/docs, the pages of each version, per chip.
PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,  # v5e
    "TPU v5": 459e12,  # v5p
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,  # v6e
}


class Flops(NamedTuple):
    """Operations of matrix products for one cell.

    Attributes:
      forward: of one forward pass.
      model: of a training step, forward and backward; what is computed twice counts once.
      hardware: of a training step, with what is computed again.
    """

    forward: int
    model: int
    hardware: int


def of_cell(model: ModelSettings, length: int, slots: int, vocabulary: int) -> Flops:
    """Matrix products of one cell with any objective, multiplications and additions both counted.

    The count of Kaplan et al. 2020 (arXiv 2001.08361, table 1) and of PaLM (Chowdhery et al. 2022,
    arXiv 2204.02311, appendix B), with products written out in place of 6 x parameters, because
    the last layer computes queries and feed-forward, and the head all it does, at M slots alone.
    The backward pass takes two products for each of the forward pass. Look-ups, norms, softmax and
    CAB's recurrence are left out, as there; so are its cosines, which need no matrix product: their
    sum follows from that of the rows. MAM's latents count once, though the draw of masks asks them
    again, and their queries for every cell, though a batch shares them. Heads of classes are left
    out.

    What hardware adds (Korthikanti et al. 2022, arXiv 2205.05198): the backward pass computes
    scores of attention and logits again, and `model.remat` every layer. CAB adds nothing on CPU and
    GPU, and there leaves out most empty slots, which are counted; what its kernels compute again,
    the logits twice more and a Gram matrix, is not counted.

    Args:
      model: sizes of the encoder.
      length: L that the cell is padded to; padding is computed, and counted, as genes are.
      slots: M.
      vocabulary: V.
    """
    D, F, L, M, V = model.width, model.feed_forward, length, slots, vocabulary

    def layer(rows: int) -> int:
        keys_and_values, queries_and_out = 2 * 2 * L * D * D, 2 * 2 * rows * D * D
        return keys_and_values + queries_and_out + 2 * scores(rows) + 2 * 2 * rows * D * F

    def scores(rows: int) -> int:
        return 2 * rows * L * D

    layers = (model.layers - 1) * layer(L) + layer(M)
    logits = 2 * M * D * V
    latents = 2 * (2 * L + 2 * model.latents) * D * D + 4 * model.latents * L * D
    projection = 2 * L * MIXED * (MIXED + D)
    forward = layers + 2 * M * D * D + logits + (latents if model.latents else 0)
    forward += projection if model.encoding == "projection" else 0
    again = (model.layers - 1) * scores(L) + scores(M) + logits
    if model.remat:
        again += layers
    return Flops(forward, 3 * forward, 3 * forward + again)


def peak(devices) -> float | None:
    """bfloat16 FLOP/s of all the devices together; None where a datasheet is not known."""
    peaks = [PEAKS.get(device.device_kind) for device in devices]
    return None if None in peaks else sum(peaks)
