"""The dense Llama family, as data: what `config.json` says, what the weights are called.

One definition serves every executor: grouped-query attention, rotary embedding (plain, linear
and llama3 scaling), SwiGLU, RMS norm; optionally a bias on query, key and value (Qwen2), a norm on
the heads of query and key (Qwen3), and an output matrix tied to the embedding.
Invariant: a `ModelConfig` describes only what the executors compute exactly; anything else in a
`config.json` is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spinney.engine.executor import FloatArray
from spinney.errors import BadInputError

ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
"""The values of ``architectures`` that load."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched. *kind* is ``default``, ``linear`` or ``llama3``."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and switches of a model, checked."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    dtype: str
    bos_token_ids: tuple[int, ...]
    eos_token_ids: tuple[int, ...]

    @property
    def query_size(self) -> int:
        """Width of the concatenated query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the concatenated key (or value) heads."""
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeights:
    """One layer. Matrices are float32 ``(out, in)``, as checkpoints store them."""

    input_norm: FloatArray
    q: FloatArray
    k: FloatArray
    v: FloatArray
    o: FloatArray
    q_bias: FloatArray | None
    k_bias: FloatArray | None
    v_bias: FloatArray | None
    o_bias: FloatArray | None
    q_norm: FloatArray | None
    k_norm: FloatArray | None
    post_norm: FloatArray
    gate: FloatArray
    up: FloatArray
    down: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class ModelWeights:
    """All weights, float32. *lm_head* is *embed* itself where the two are tied."""

    embed: FloatArray
    layers: tuple[LayerWeights, ...]
    norm: FloatArray
    lm_head: FloatArray


TensorSource = Callable[[str, tuple[int, ...]], FloatArray]
"""Returns the float32 tensor of a name; raises BadInputError if absent or of another shape."""


def parse_config(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Return the model that *raw*, the content of a ``config.json``, describes.

    *where* names the file in messages. Raises BadInputError for a missing or wrong field, and for
    features that would be computed wrongly.
    """
    architecture = _architecture(raw, where)
    _refuse_unsupported(raw, where)
    heads = _positive(raw, "num_attention_heads", where)
    hidden = _positive(raw, "hidden_size", where)
    kv_heads = int(raw.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        raise BadInputError(
            f"{where}: num_attention_heads ({heads}) must be a multiple of "
            f"num_key_value_heads ({kv_heads})"
        )
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        architecture=architecture,
        vocab_size=_positive(raw, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=_positive(raw, "intermediate_size", where),
        num_layers=_positive(raw, "num_hidden_layers", where),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=int(raw.get("head_dim") or hidden // heads),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=_rope_theta(raw),
        rope_scaling=_rope_scaling(raw, where),
        max_position_embeddings=_positive(raw, "max_position_embeddings", where),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
        output_bias=attention_bias,
        qk_norm=architecture == "Qwen3ForCausalLM",
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        bos_token_ids=token_id_list(raw.get("bos_token_id")),
        eos_token_ids=token_id_list(raw.get("eos_token_id")),
    )


def token_id_list(value: object) -> tuple[int, ...]:
    """Return ``bos_token_id`` or ``eos_token_id``, which may be absent, a number or a list."""
    if value is None:
        return ()
    if isinstance(value, int):
        return (value,)
    if isinstance(value, list):
        return tuple(int(item) for item in value)
    return ()


def _architecture(raw: Mapping[str, Any], where: str) -> str:
    names = raw.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return str(name)
    raise BadInputError(
        f"{where}: architectures is {names!r}; this engine runs {', '.join(ARCHITECTURES)}"
    )


def _refuse_unsupported(raw: Mapping[str, Any], where: str) -> None:
    if raw.get("quantization_config"):
        raise BadInputError(
            f"{where}: quantization_config is set; this engine needs f32, f16 or bf16 weights"
        )
    activation = raw.get("hidden_act", "silu")
    if activation != "silu":
        raise BadInputError(f"{where}: hidden_act is {activation!r}; this engine computes 'silu'")
    if raw.get("mlp_bias"):
        raise BadInputError(f"{where}: mlp_bias is true; this engine has no bias in the MLP")
    sliding = raw.get("use_sliding_window", "Mistral" in str(raw.get("architectures")))
    if sliding and raw.get("sliding_window") is not None:
        raise BadInputError(
            f"{where}: sliding_window is {raw['sliding_window']}; this engine attends to all tokens"
        )


def _positive(raw: Mapping[str, Any], key: str, where: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        found = "is missing" if value is None else f"is {value!r}"
        raise BadInputError(f"{where}: {key} {found}; a positive whole number is needed")
    return value


def _rope_parameters(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    found = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    return found if isinstance(found, Mapping) else {}


def _rope_theta(raw: Mapping[str, Any]) -> float:
    return float(raw.get("rope_theta") or _rope_parameters(raw).get("rope_theta") or 10_000.0)


def _rope_scaling(raw: Mapping[str, Any], where: str) -> RopeScaling:
    found = _rope_parameters(raw)
    kind = str(found.get("rope_type") or found.get("type") or "default")
    if kind == "default":
        return RopeScaling()
    if kind not in ("linear", "llama3"):
        raise BadInputError(
            f"{where}: rope scaling is {kind!r}; this engine computes default, linear and llama3"
        )
    try:
        factor = float(found["factor"])
        if kind == "linear":
            return RopeScaling(kind, factor)
        return RopeScaling(
            kind,
            factor,
            float(found["low_freq_factor"]),
            float(found["high_freq_factor"]),
            int(found["original_max_position_embeddings"]),
        )
    except KeyError as missing:
        raise BadInputError(f"{where}: rope scaling {kind!r} lacks {missing.args[0]}") from None


def rope_frequencies(config: ModelConfig) -> FloatArray:
    """Return the ``head_dim / 2`` angular frequencies, scaled, in radians per position."""
    half = config.head_dim // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(2.0 / config.head_dim)
    plain = (1.0 / (config.rope_theta**exponents)).astype(np.float32)
    scaling = config.rope_scaling
    if scaling.kind == "linear":
        return (plain / scaling.factor).astype(np.float32)
    if scaling.kind == "llama3":
        return _llama3_frequencies(plain, scaling)
    return plain


def _llama3_frequencies(plain: FloatArray, scaling: RopeScaling) -> FloatArray:
    """Stretch long wavelengths by *factor*, keep short ones, and blend in between."""
    wavelength = 2 * math.pi / plain
    longest_kept = scaling.original_max_position / scaling.high_freq_factor
    shortest_stretched = scaling.original_max_position / scaling.low_freq_factor
    blend = (scaling.original_max_position / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    stretched = plain / scaling.factor
    blended = (1 - blend) * stretched + blend * plain
    result = np.where(wavelength > shortest_stretched, stretched, blended)
    return np.where(wavelength < longest_kept, plain, result).astype(np.float32)


def rope_tables(config: ModelConfig, positions: int) -> tuple[FloatArray, FloatArray]:
    """Return cosines and sines, each ``(positions, head_dim / 2)``.

    A head ``(a, b)``, split in halves, is rotated to ``(a·cos - b·sin, b·cos + a·sin)``.
    """
    angles = np.outer(np.arange(positions, dtype=np.float32), rope_frequencies(config))
    return np.cos(angles, dtype=np.float32), np.sin(angles, dtype=np.float32)


def gather_weights(
    config: ModelConfig,
    tensor: TensorSource,
    keep: Callable[[LayerWeights], LayerWeights] | None = None,
) -> ModelWeights:
    """Return the weights by their names in a Hugging Face checkpoint, shapes checked.

    *keep* returns what is to be kept of a layer: no more than one layer is in memory as a whole.
    """

    def layer(index: int) -> LayerWeights:
        whole = _layer(config, index, tensor)
        return whole if keep is None else keep(whole)

    width, vocab = config.hidden_size, config.vocab_size
    embed = tensor("model.embed_tokens.weight", (vocab, width))
    return ModelWeights(
        embed=embed,
        layers=tuple(layer(index) for index in range(config.num_layers)),
        norm=tensor("model.norm.weight", (width,)),
        lm_head=embed if config.tie_word_embeddings else tensor("lm_head.weight", (vocab, width)),
    )


def _layer(config: ModelConfig, index: int, tensor: TensorSource) -> LayerWeights:
    prefix = f"model.layers.{index}."
    width, inner = config.hidden_size, config.intermediate_size
    q, kv, head = config.query_size, config.kv_size, config.head_dim

    def optional(present: bool, name: str, size: int) -> FloatArray | None:
        return tensor(prefix + name, (size,)) if present else None

    return LayerWeights(
        input_norm=tensor(prefix + "input_layernorm.weight", (width,)),
        q=tensor(prefix + "self_attn.q_proj.weight", (q, width)),
        k=tensor(prefix + "self_attn.k_proj.weight", (kv, width)),
        v=tensor(prefix + "self_attn.v_proj.weight", (kv, width)),
        o=tensor(prefix + "self_attn.o_proj.weight", (width, q)),
        q_bias=optional(config.qkv_bias, "self_attn.q_proj.bias", q),
        k_bias=optional(config.qkv_bias, "self_attn.k_proj.bias", kv),
        v_bias=optional(config.qkv_bias, "self_attn.v_proj.bias", kv),
        o_bias=optional(config.output_bias, "self_attn.o_proj.bias", width),
        q_norm=optional(config.qk_norm, "self_attn.q_norm.weight", head),
        k_norm=optional(config.qk_norm, "self_attn.k_norm.weight", head),
        post_norm=tensor(prefix + "post_attention_layernorm.weight", (width,)),
        gate=tensor(prefix + "mlp.gate_proj.weight", (inner, width)),
        up=tensor(prefix + "mlp.up_proj.weight", (inner, width)),
        down=tensor(prefix + "mlp.down_proj.weight", (width, inner)),
    )
