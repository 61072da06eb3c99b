"""Queries, keys and values -> attention by the accelerator's fused kernel, or by `attention.py`.

cuDNN's flash attention on GPU (Dao et al. 2022) and splash attention on TPU, both as jax ships
them: no scores leave the chip, and keys beyond a cell's length are not read. Neither can drop
attention weights, and here both multiply bfloat16. Neither has been run on its hardware: splash is
tested interpreted on CPU, cuDNN as far as the program that names it.
"""

import jax
import jax.numpy as jnp

from kernels.cab import api
from scaling.pretrain import attention, sharding

PLATFORMS = {"cudnn": "gpu", "splash": "tpu"}  # that the named kernels run on
LANES = 128  # of a TPU: what lengths are padded to
BLOCK = 512  # queries and keys of a block of splash attention, at most
INTERPRET = False  # tests on other machines set it


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array,
    dropout_rng: jax.Array | None,
    dropout_rate: float,
    deterministic: bool,
    implementation: str,
) -> jax.Array:
    """Scaled dot-product attention, an `attention_fn` of Flax; see `attention.attend`.

    Args:
      query: [B, M, H, D / H].
      key, value: [B, L, H, D / H].
      mask: bool [B, 1, 1, L], keys to be read: the first of each cell.
      dropout_rng, dropout_rate, deterministic: of the dropout of attention weights.
      implementation: "blocked", "cudnn", "splash", or "default": the fused kernel of the platform
        where it can do what is asked for. A named one never gives way to another.

    Returns:
      [B, M, H, D / H].

    Raises:
      ValueError: the named kernel cannot do what is asked for.
    """
    dropped = not deterministic and dropout_rate > 0
    if implementation == "default":
        names = {platform: name for name, platform in PLATFORMS.items()}
        implementation = names.get(api.platform(), "blocked")
        if refusal(query.dtype, query.shape[3], dropped):
            implementation = "blocked"
    if implementation == "blocked":
        return attention.attend(
            query, key, value, mask=mask, dropout_rng=dropout_rng, dropout_rate=dropout_rate,
            deterministic=deterministic,
        )
    check(implementation, query.dtype, query.shape[3], dropped)
    kernel = {"cudnn": cudnn, "splash": splash}[implementation]
    # One key is read where a cell has none, so that what is never used stays finite.
    return kernel(query, key, value, jnp.maximum(mask[:, 0, 0].sum(-1, dtype=jnp.int32), 1))


def check(implementation: str, dtype, width: int, dropped: bool) -> None:
    """Refuses a named kernel that cannot do what is asked for.

    Args:
      implementation: see `attend`.
      dtype: of queries, keys and values.
      width: of a head, D / H.
      dropped: whether attention weights are.

    Raises:
      ValueError: why it cannot, and the remedy.
    """
    if implementation in PLATFORMS and (reason := refusal(dtype, width, dropped)):
        raise ValueError(f"devices.attention {implementation!r} {reason}")


def refusal(dtype, width: int, dropped: bool) -> str:
    """Why fused attention with heads of this width cannot be had, and the remedy; "" if it can."""
    if dropped:
        return "cannot drop attention weights; set model.attention_dropout=0.0"
    if dtype != jnp.bfloat16:
        return "multiplies bfloat16; set model.dtype=bfloat16"
    if width > 128 or width % 8:
        return f"takes heads of a multiple of 8 up to 128, and these have {width}; set model.heads"
    return ""


def check_platform(implementation: str) -> None:
    """Refuses a named kernel where it cannot run.

    Raises:
      ValueError: this is another platform than the kernel's.
    """
    platform = PLATFORMS.get(implementation, api.platform())
    if platform != api.platform():
        raise ValueError(
            f"devices.attention {implementation!r} runs on {platform.upper()} alone, and this is "
            f"{api.platform().upper()}; leave it at 'default'"
        )


def cudnn(query, key, value, length_B: jax.Array) -> jax.Array:
    """cuDNN's flash attention; shapes as of `attend`, the lengths int32 [B]."""
    return jax.nn.dot_product_attention(
        query, key, value, key_value_seq_lengths=length_B, implementation="cudnn"
    )


def splash(query, key, value, length_B: jax.Array) -> jax.Array:
    """Splash attention, each device on its own cells and heads; see `cudnn`."""
    return sharding.over_cells_and_heads(_splash, query, key, value, length_B)


def _splash(query, key, value, length_B, _=None):
    queries = query.shape[1]
    query = query * jnp.asarray(query.shape[3] ** -0.5, query.dtype)
    padded = [_padded(array) for array in (query, key, value)]
    out_BxHxMxE = jax.vmap(_splash_of_cell)(*padded, length_B)
    return jnp.swapaxes(out_BxHxMxE, 1, 2)[:, :queries]


def _padded(x_BxLxHxE):
    """B x H x L x E, L a multiple of its block's size."""
    more = -x_BxLxHxE.shape[1] % _block(x_BxLxHxE.shape[1])
    return jnp.swapaxes(jnp.pad(x_BxLxHxE, ((0, 0), (0, more), (0, 0), (0, 0))), 1, 2)


def _block(length: int) -> int:
    return min(BLOCK, -(-length // LANES) * LANES)


def _splash_of_cell(query_HxMxE, key_HxLxE, value_HxLxE, length):
    """Blocks of keys that begin beyond the length are skipped, a block that it cuts is masked."""
    # Loaded here: it takes memory and half a second of every start.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as info

    (_, queries, _), keys = query_HxMxE.shape, key_HxLxE.shape[1]
    rows, columns = _block(queries), _block(keys)
    shape = 1, queries // rows, keys // columns
    row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
    last = (length - 1) // columns
    runs = jnp.where(column <= last, 2, 0)  # 2: the block needs no mask but the segments'

    def blocks(fetched):
        return info.MaskInfo(fetched, None, runs, None, None, True)

    by_key = blocks(jnp.minimum(column, last))
    kernel = splash_.SplashAttentionKernel(
        by_key, by_key, blocks(row),
        block_sizes=splash_.BlockSizes(
            rows, columns, columns, rows, columns, columns, rows, columns
        ),
        is_mqa=False, save_residuals=False, mask_value=splash_.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None, residual_checkpoint_name=None, mask_function=None,
        interpret=INTERPRET,
    )
    real = (jnp.arange(keys) < length).astype(jnp.int32)
    segments = splash_.SegmentIds(jnp.ones(queries, jnp.int32), real)
    return kernel(query_HxMxE, key_HxLxE, value_HxLxE, segments)
