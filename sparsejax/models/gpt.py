"""Decoder-only transformer: GPT-2's architecture, with rotary positions and grouped key heads as options."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from sparsejax.leaves import Layout, flax_layout, stacked
from sparsejax.models.attention import Attention, named_attention
from sparsejax.models.fields import check_choice, check_dtype, check_flags, check_rate, check_sizes
from sparsejax.models.gpt_block import ACTIVATIONS, Block, Spec


class GPT(nn.Module):
    """Decoder-only transformer; its sizes are GPT-2's unless given.

    Params: `token_embed/embedding` (V, E), `position_embed/embedding` (context, E), `block_0/attention/{query,key,
    value,out}/kernel`, `block_0/mlp/{up,down}/kernel`, ..., and norms. Each projection is a leaf (in, out) of its own,
    so that it is ranked and counted by itself, whether key heads are grouped or not, and N:M runs along its inputs
    with the default layout. The default `where` takes these six kernels of a block and nothing else: embeddings, an
    untied `unembed/kernel`, norms and biases stay dense, as in the papers that prune language models. With `scan`, the
    blocks are one, `blocks/...`, with the layers along axis 0 of each leaf: pass `layout=model.layout` to the method.

    Attributes:
      vocab: number of tokens V.
      layers, width, heads: of the blocks; heads divides width E.
      kv_heads: key and value heads, a divisor of heads; None is heads.
      mlp_width: of the hidden layer; None is 4 width.
      context: longest sequence, in tokens.
      positions: "learned" (added to the embeddings) or "rotary" (queries and keys are turned).
      attention: a name in `sparsejax.models.attention.ATTENTIONS`, or a causal function (q_BxLxHxD, k_BxLxKxD,
        v_BxLxKxD) -> out_BxLxHxD.
      activation: "gelu_new" (GPT-2's, by tanh), "gelu", "relu" or "silu".
      bias: whether linear layers and norms have biases.
      tied: whether logits are products with the embeddings.
      dropout: rate, of embeddings, of what each half of a block adds, and of dense attention's weights; rng "dropout".
      norm_epsilon: added to variances.
      vocab_multiple: the embeddings' rows are padded to a multiple of it; logits stay (B, L, V).
      scan: one block scanned over stacked layers: compiles in the time of one.
      remat: activations inside a block are computed again in the backward pass.
      dtype: of the computation, "float32", "bfloat16" or "float16"; params and logits are float32.
      monarch: blocks of a factor of the Monarch matrices that take the place of `mlp/{up,down}/kernel`; None: none.

    Raises:
      ValueError: an attribute is out of range, or a sequence is longer than the context.

    Example:
      >>> model = GPT(vocab=65, layers=2, width=32, heads=4, context=16)
      >>> tokens = jax.ShapeDtypeStruct((8, 16), jnp.int32)
      >>> jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)[0].shape
      (8, 16, 65)

    Source: Radford et al., Language models are unsupervised multitask learners, 2019.
    """

    vocab: int
    layers: int = 12
    width: int = 768
    heads: int = 12
    kv_heads: int | None = None
    mlp_width: int | None = None
    context: int = 1024
    positions: str = "learned"
    attention: str | Attention = "dense"
    activation: str = "gelu_new"
    bias: bool = True
    tied: bool = True
    dropout: float = 0.0
    norm_epsilon: float = 1e-5
    vocab_multiple: int = 1
    scan: bool = False
    remat: bool = False
    dtype: Any = "float32"
    monarch: int | None = None

    def __post_init__(self) -> None:
        _check(self)
        super().__post_init__()

    @property
    def layout(self) -> Layout:
        """The layout for sparse methods: which axes of the leaves are inputs, outputs and stacked layers."""
        return stacked("blocks/*") if self.scan else flax_layout

    @nn.compact
    def __call__(self, tokens_BxL: jax.Array, *, train: bool = False, decode: bool = False) -> jax.Array:
        """Logits (B, L, V), float32: at each position, of the token after it.

        With `decode`, the tokens follow those of earlier calls, whose keys and values are in the collection "cache"
        (mutable; made by the first call, which may bring many tokens). More tokens than the context holds are not
        noticed: `sparsejax.models.decoding.generate` takes care of that.
        """
        length = tokens_BxL.shape[1]
        if length > self.context:
            raise ValueError(f"tokens: a sequence of {length} is longer than context={self.context}")
        spec, offset = self._spec(train, decode), self._offset(length) if decode else 0
        rows = -(-self.vocab // self.vocab_multiple) * self.vocab_multiple
        init = nn.initializers.normal(0.02)
        # Cast after the look-up: gradients of many positions are then summed in float32.
        embed = nn.Embed(rows, self.width, embedding_init=init, name="token_embed")
        x_BxLxE = embed(tokens_BxL)
        if self.positions == "learned":
            places = nn.Embed(self.context, self.width, embedding_init=init, name="position_embed")
            x_BxLxE = x_BxLxE + places(jnp.arange(length) + offset)[None]
        x_BxLxE = self._blocks(spec, spec.drop()(x_BxLxE.astype(spec.dtype)), offset)
        x_BxLxE = spec.norm("final_norm")(x_BxLxE)
        if self.tied:
            table = embed.embedding.astype(spec.dtype)
            logits = jnp.einsum("ble,ve->blv", x_BxLxE, table, preferred_element_type=jnp.float32)
        else:
            dot = partial(lax.dot_general, preferred_element_type=jnp.float32)
            options: dict[str, Any] = dict(use_bias=False, dtype=spec.dtype, kernel_init=init, name="unembed")
            logits = nn.Dense(rows, dot_general=dot, **options)(x_BxLxE)
        return logits[..., : self.vocab]

    def _blocks(self, spec: Spec, x_BxLxE: jax.Array, offset: int | jax.Array) -> jax.Array:
        """All layers, one after the other or scanned."""
        block = nn.remat(Block, prevent_cse=not self.scan) if self.remat and not spec.decode else Block
        if not self.scan:
            for layer in range(self.layers):
                x_BxLxE = block(spec, name=f"block_{layer}")(x_BxLxE, offset)
            return x_BxLxE
        scanned = nn.scan(
            lambda block, x_BxLxE, offset: (block(x_BxLxE, offset), None),
            variable_axes={"params": 0, "cache": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.layers,
        )
        return scanned(block(spec, name="blocks"), x_BxLxE, offset)[0]

    def _offset(self, length: int) -> jax.Array:
        """Tokens in the cache, before these `length` are added."""
        index = self.variable("cache", "index", jnp.zeros, (), jnp.int32)
        index.value, offset = index.value + length, index.value
        return offset

    def _spec(self, train: bool, decode: bool) -> Spec:
        return Spec(
            self.width,
            self.heads,
            self.kv_heads or self.heads,
            self.mlp_width or 4 * self.width,
            self.context,
            self.positions == "rotary",
            named_attention(self.attention),
            self.activation,
            self.bias,
            self.dropout,
            self.norm_epsilon,
            0.02 / (2 * self.layers) ** 0.5,  # each layer adds two of these projections to the residual stream
            jnp.dtype(self.dtype),
            train,
            decode,
            self.monarch,
        )


def _check(gpt: GPT) -> None:
    """Raises ValueError, in one line that names the attribute, where one is out of range."""
    check_sizes(gpt, "vocab", "layers", "width", "heads", "context", "vocab_multiple")
    check_sizes(gpt, *(name for name in ("kv_heads", "mlp_width", "monarch") if getattr(gpt, name) is not None))
    for name, whole in (("heads", "width"), ("kv_heads", "heads")):
        if getattr(gpt, whole) % (getattr(gpt, name) or 1):
            raise ValueError(f"{name}: {getattr(gpt, name)} does not divide {whole}={getattr(gpt, whole)}")
    check_choice(gpt, "positions", ("learned", "rotary"))
    check_choice(gpt, "activation", ACTIVATIONS)
    if gpt.positions == "rotary" and gpt.width // gpt.heads % 2:
        raise ValueError(f"positions: 'rotary' needs an even width of a head, not {gpt.width // gpt.heads}")
    check_rate(gpt, "dropout")
    check_rate(gpt, "norm_epsilon")
    check_flags(gpt, "bias", "tied", "scan", "remat")
    check_dtype(gpt, "dtype")
    named_attention(gpt.attention)


class GPT2(GPT):
    """GPT-2 of 124 M parameters: 12 layers, 768 wide, 12 heads, context 1024.

    124,439,808 parameters at its vocabulary of 50,257; dropout 0.1 as published.

    Example:
      >>> GPT2().layers
      12

    Source: Radford et al., Language models are unsupervised multitask learners, 2019.
    """

    vocab: int = 50_257
    dropout: float = 0.1


class GPT2Medium(GPT):
    """GPT-2 of 355 M parameters: 24 layers, 1024 wide, 16 heads, context 1024.

    354,823,168 parameters at its vocabulary of 50,257; dropout 0.1 as published.

    Example:
      >>> GPT2Medium().width
      1024

    Source: Radford et al., Language models are unsupervised multitask learners, 2019.
    """

    vocab: int = 50_257
    layers: int = 24
    width: int = 1024
    heads: int = 16
    dropout: float = 0.1


class GPTChar(GPT):
    """GPT of 10.7 M parameters for characters: 6 layers, 384 wide, 6 heads, context 256, dropout 0.2, no biases.

    10,745,088 parameters at 65 characters, of which 98,304 are positions.

    Example:
      >>> GPTChar(vocab=65).context
      256

    Source: the Shakespeare model of github.com/karpathy/nanoGPT.
    """

    layers: int = 6
    width: int = 384
    heads: int = 6
    context: int = 256
    activation: str = "gelu"
    bias: bool = False
    dropout: float = 0.2


class GPTToy(GPT):
    """GPT of 0.8 M parameters for characters on a CPU: 4 layers, 128 wide, 4 heads, context 64, no biases.

    804,096 parameters at 65 characters. GELU by tanh, which costs a CPU less than the error function.

    Example:
      >>> GPTToy(vocab=65).context
      64

    Source: the Shakespeare model for CPUs of github.com/karpathy/nanoGPT.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 64
    bias: bool = False
