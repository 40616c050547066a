"""Recurrent language models, GRU or LSTM: RigL's character model, with its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sparsejax.models.fields import check_choice, check_dtype, check_rate, check_sizes, check_widths

CELLS = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}


class RNN(nn.Module):
    """Recurrent language model: embedding, recurrent layers, readout, logits by the embedding again.

    Params: `embed/embedding` (V, embed); `gru_0/{ir,iz,in}/kernel` (embed, hidden), `gru_0/{hr,hz,hn}/kernel` (hidden,
    hidden) and biases, for the reset gate, the update gate and the candidate, or `lstm_0/{ii,if,ig,io,hi,hf,hg,ho}`;
    `readout_0/kernel`, ... Each gate is a leaf of its own. The default `where` takes the kernels of inputs, of the
    recurrence and of the readout, and leaves the embedding dense.

    Attributes:
      vocab: number of tokens V.
      cell: "gru" or "lstm".
      embed: width of the embedding, and of the last readout, as both meet in the logits.
      hidden: width of the state.
      layers: recurrent layers.
      readout: widths of the ReLU layers between state and logits, but for the last, which is `embed` wide and linear.
      context: tokens of a training sequence; a longer one is fine.
      dropout: rate, of the inputs of each recurrent layer and of the readout; rng "dropout".
      dtype: of the multiplications, "float32", "bfloat16" or "float16"; params, states and logits are float32.

    Raises:
      ValueError: an attribute is out of range.

    Example:
      >>> model = RNN(vocab=65, embed=8, hidden=16, readout=(12,))
      >>> tokens = jax.ShapeDtypeStruct((8, 20), jnp.int32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)[0].shape
      (8, 20, 65)

    Source: section 4.2 of Evci et al. 2020, arXiv:1911.11134 (GRU of 512, embedding of 128 shared with the output,
    readout of 256 and 128); cells, Cho et al. 2014, arXiv:1406.1078, and Hochreiter & Schmidhuber 1997.
    """

    vocab: int
    cell: str = "gru"
    embed: int = 128
    hidden: int = 512
    layers: int = 1
    readout: Sequence[int] = (256,)
    context: int = 512
    dropout: float = 0.0
    dtype: Any = "float32"

    def __post_init__(self) -> None:
        check_sizes(self, "vocab", "embed", "hidden", "layers", "context")
        check_choice(self, "cell", CELLS)
        check_rate(self, "dropout")
        check_dtype(self, "dtype")
        check_widths(self, "readout")
        self.readout = tuple(self.readout)  # configs bring lists, with which a module has no hash
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, *, train: bool = False, decode: bool = False) -> jax.Array:
        """Logits (B, L, V), float32: at each position, of the token after it.

        With `decode`, the tokens follow those of earlier calls, whose last states are in the collection "cache"
        (mutable; made by the first call).
        """
        dtype = jnp.dtype(self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        embed = nn.Embed(self.vocab, self.embed, name="embed")
        x_BxLxD = embed(tokens_BxL)
        for layer in range(self.layers):
            cell = CELLS[self.cell](self.hidden, dtype=dtype, name=f"{self.cell}_{layer}")
            x_BxLxD = self._run(cell, drop(x_BxLxD), decode)
        for index, width in enumerate((*self.readout, self.embed)):
            x_BxLxD = nn.Dense(width, dtype=dtype, name=f"readout_{index}")(
                nn.relu(x_BxLxD) if index else drop(x_BxLxD)
            )
        table_VxD = embed.embedding.astype(dtype)
        return jnp.einsum("bld,vd->blv", x_BxLxD, table_VxD, preferred_element_type=jnp.float32)

    def _run(self, cell: nn.RNNCellBase, x_BxLxD: jax.Array, decode: bool) -> jax.Array:
        """The states h (B, L, hidden) of one layer."""
        run = nn.RNN(cell, return_carry=True)
        if not decode:
            _, h_BxLxH = run(x_BxLxD)
            return h_BxLxH
        start = lambda: cell.initialize_carry(jax.random.key(0), (x_BxLxD.shape[0], x_BxLxD.shape[-1]))
        state = self.variable("cache", f"{cell.name}_state", start)
        state.value, h_BxLxH = run(x_BxLxD, initial_carry=state.value)
        return h_BxLxH


class GRU(RNN):
    """GRU language model: RigL's for characters, embedding 128, state 512, readout 256 and 128.

    Example:
      >>> GRU(vocab=256).hidden
      512

    Source: Evci et al. 2020, arXiv:1911.11134, section 4.2 and appendix I.
    """


class LSTM(RNN):
    """LSTM language model with the sizes of the GRU one.

    Example:
      >>> LSTM(vocab=256).cell
      'lstm'
    """

    cell: str = "lstm"
