"""Sizes and numerics of the decoder, with the presets that configs name."""

import dataclasses

# What the forward pass of a layer keeps for the backward pass, from all to nothing but its input; the rest is
# computed again. minimal: every projection and attention's result, so that only products' neighbours are.
# save_dots: what jax.checkpoint_policies calls dots with no batch dimensions, on a TPU every projection.
REMAT_POLICIES = ("none", "minimal", "products", "save_dots", "projections", "save_qkv", "full")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTION_BACKENDS = ("auto", "einsum", "splash", "cudnn")


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides the decoder's parameters and its arithmetic.

    Attributes:
      vocab_size: rows of both vocabulary tables, padded to a multiple that every mesh divides.
      num_real_rows: rows that are real; the rest never get probability.
      embed_dim, num_layers, num_heads, num_kv_heads, head_dim, hidden_dim: the architecture (LLaMA-2;
        num_kv_heads < num_heads is grouped-query attention).
      rope_theta, norm_eps: constants of the rotary embedding and of RMSNorm.
      dtype: of activations and of matrix products. param_dtype: of the stored parameters.
      remat_policy: what the backward pass recomputes, one of REMAT_POLICIES.
      scan_unroll: layers per iteration of the scan over layers; num_layers removes the loop (fast for a
        tiny model on a CPU), 1 keeps the program small (a deep model).
      attention_blocks: query blocks of causal attention (attention.attend); used where it divides the length.
      attention: who computes attention without a cache, one of ATTENTION_BACKENDS. "auto" is settled for the
        mesh by `attention.for_mesh`; where nobody did, it is einsum.
      loss_tile: positions per row whose logits exist at one time in the loss.
    """

    vocab_size: int
    num_real_rows: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat_policy: str = "none"
    scan_unroll: int = 1
    attention_blocks: int = 1
    attention: str = "auto"
    loss_tile: int = 128

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type in (int, float) and value <= 0:
                raise ValueError(f"{field.name} is {value}; it must be above 0")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(DTYPES)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is no multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even for the rotary embedding")
        if not 0 < self.num_real_rows <= self.vocab_size:
            raise ValueError(f"{self.num_real_rows} real rows do not fit a table of {self.vocab_size} rows")
        if self.remat_policy not in REMAT_POLICIES:
            raise ValueError(f"remat_policy {self.remat_policy!r} is none of {', '.join(REMAT_POLICIES)}")
        if self.attention not in ATTENTION_BACKENDS:
            raise ValueError(f"attention {self.attention!r} is none of {', '.join(ATTENTION_BACKENDS)}")
        if self.num_layers % self.scan_unroll:
            raise ValueError(f"scan_unroll {self.scan_unroll} does not divide num_layers {self.num_layers}")

    @classmethod
    def preset(cls, name: str, *, vocab_size: int, num_real_rows: int, **overrides) -> "DecoderConfig":
        """The named size with any field overridden; ValueError for a name or field that does not exist."""
        if name not in PRESETS:
            raise ValueError(f"there is no model preset {name!r}; the presets are {', '.join(PRESETS)}")
        fields = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(overrides) - fields)
        if unknown:
            raise ValueError(
                f"the model has no field {unknown[0]!r}; its fields are {', '.join(sorted(fields))}"
            )
        return cls(**{**PRESETS[name], "vocab_size": vocab_size, "num_real_rows": num_real_rows, **overrides})

    def residual_scale(self, fan_in: int) -> float:
        """Initial standard deviation of a kernel that writes to the residual stream.

        The sum of all layers' writes then starts with the variance of one.
        """
        return (2 * self.num_layers * fan_in) ** -0.5

    @property
    def tensor_sizes(self) -> tuple[int, ...]:
        """The sizes that the mesh's tensor axis has to divide."""
        return self.num_heads, self.num_kv_heads, self.hidden_dim, self.vocab_size

    @property
    def num_matmul_parameters(self) -> int:
        """Parameters that a token meets in a matrix product: all but the input table and the norms."""
        attention = 2 * self.embed_dim * self.head_dim * (self.num_heads + self.num_kv_heads)
        mlp = 3 * self.embed_dim * self.hidden_dim
        return self.num_layers * (attention + mlp) + self.embed_dim * self.vocab_size

    def train_flops_per_token(self, seq_len: int) -> float:
        """Model FLOPs of one trained token, forward and backward (PaLM, appendix B, made causal).

        6 per matrix parameter, and 6 · layers · heads · head_dim · seq_len for attention (two products of a
        query with seq_len / 2 keys on average). Recomputation does not count.
        """
        attention = 6 * self.num_layers * self.num_heads * self.head_dim * seq_len
        return 6.0 * self.num_matmul_parameters + attention

    def to_dict(self) -> dict:
        """Plain JSON values; `DecoderConfig(**d)` restores it."""
        return dataclasses.asdict(self)


PRESETS = {
    # For tests: every feature present (grouped-query heads, two layers), nothing large.
    "dummy": {
        "embed_dim": 32,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "hidden_dim": 64,
    },
    # The quickstart's and the shipped model's: 256 wide, learns the small world in minutes on two cores.
    "tiny": {
        "embed_dim": 256,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 64,
        "hidden_dim": 704,
        "attention_blocks": 4,
        "loss_tile": 32,
        "scan_unroll": 4,
    },
    # Three times the quickstart's parameters, for a run of hours.
    "small": {
        "embed_dim": 384,
        "num_layers": 8,
        "num_heads": 6,
        "num_kv_heads": 6,
        "head_dim": 64,
        "hidden_dim": 1024,
        "attention_blocks": 4,
        "loss_tile": 32,
        "scan_unroll": 8,
    },
    # LLaMA-2-7B (arXiv 2307.09288), which AnyGPT starts from.
    "llama2-7b": {
        "embed_dim": 4096,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 32,
        "head_dim": 128,
        "hidden_dim": 11008,
        "attention_blocks": 8,
        "dtype": "bfloat16",
        "remat_policy": "projections",
        "loss_tile": 512,
    },
}
