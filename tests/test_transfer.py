"""Maximal update parameterisation: what a few steps change does not grow with the width."""

import jax.numpy as jnp
import numpy as np

from configs import default
from scaling.pretrain import masking, optimizer, step
from scaling.pretrain.model import RankEncoder
from scaling.settings import Settings

V, L, WIDTHS = 200, 24, (64, 128, 256, 512)


def settings(width: int, base: int, rate: float = 3e-4) -> step.RunSettings:
    """Two layers of heads of width 64, without dropout; constant rate."""
    config = default.get_config()
    config.model.update(layers=2, width=width, heads=width // 64, feed_forward=4 * width)
    config.model.update(length=L, dropout=0.0, base_width=base)
    config.objective.name = "mlm"
    config.train.update(warmup=0.0, learning_rate=rate, clip=1e9)
    return Settings.from_config(config).run


def moved(run: step.RunSettings, steps: int = 4) -> dict[str, float]:
    """Root mean squares of what some steps change in hidden states and logits of one batch."""
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.permutation(np.arange(2, V))[:L] for _ in range(16)]).astype(np.int32)
    cells = masking.mask_cells(tokens, 0, np.zeros(16, int), np.arange(16), V, run.masking)
    params = step.initial_params(0, run.model, V)
    model = RankEncoder(run.model, V)

    def look(params):
        hidden = model.apply({"params": params}, cells.inputs_BxL, cells.slots_BxM)
        states = model.apply({"params": params}, cells.inputs_BxL, method=model.encode)
        return {"states": states[-1], "logits": hidden @ params["embedding"].T}

    before = look(params)
    moments = optimizer.optimizer(run.train, 10**6).init(params)
    state = step.State(params, moments, jnp.int32(0))
    for _ in range(steps):
        state, _ = step.train_step(state, cells, np.uint32(0), run.program(), 10**6)
    after = look(state.params)
    return {k: float(jnp.sqrt(jnp.mean((after[k] - before[k]) ** 2))) for k in before}


if __name__ == "__main__":
    for base in (0, 64):
        for rate in (1e-4, 3e-4, 1e-3):
            for w in WIDTHS:
                print(base, rate, w, moved(settings(w, base, rate)), flush=True)
