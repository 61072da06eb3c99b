"""Cumulative assignment blocking over masked genes, and the plain loss beside it."""

from kernels.cab.api import CabLoss, cab_loss, masked_lm_loss

__all__ = ["CabLoss", "cab_loss", "masked_lm_loss"]
