"""Makes a model directory with random weights: real in every file, meaningless in every word.

Tests, benchmarks and trials of a cluster need a checkpoint of a chosen size and no download. The
tokenizer is byte-level BPE trained on Python's own standard library, so any text can be encoded.
Invariant: the same arguments write the same weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from spinney.engine.model import gather_weights, parse_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

BOS, EOS, START, END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (BOS, EOS, START, END)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class RandomModel:
    """What to make. *tie* shares the embedding with the output; *family* picks the architecture."""

    family: str = "LlamaForCausalLM"
    layers: int = 2
    hidden: int = 64
    inner: int = 176
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 512
    max_positions: int = 1024
    tie: bool = False
    seed: int = 0


FOUR_MILLION = RandomModel(
    layers=4, hidden=256, inner=688, heads=8, kv_heads=4, vocab=2048, max_positions=2048
)
"""4 layers of width 256, about 4 million parameters: what the speed figures are about."""


def write_random_model(directory: Path, spec: RandomModel, **config: Any) -> Path:
    """Write *spec* to *directory*, made if need be, and return it. *config* overrides entries."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(spec.vocab)
    tokenizer.save(str(directory / "tokenizer.json"))
    spec = replace(spec, vocab=tokenizer.get_vocab_size())
    raw = _config(spec) | config
    _write_json(directory / "config.json", raw)
    _write_json(directory / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1, 3]})
    _write_json(
        directory / "tokenizer_config.json",
        {
            "bos_token": BOS,
            "eos_token": END,
            "chat_template": CHAT_TEMPLATE,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        },
    )
    save_file(_weights(raw, spec.seed), directory / "model.safetensors", {"format": "pt"})
    return directory


def _config(spec: RandomModel) -> dict[str, Any]:
    return {
        "architectures": [spec.family],
        "model_type": spec.family.removesuffix("ForCausalLM").lower(),
        "vocab_size": spec.vocab,
        "hidden_size": spec.hidden,
        "intermediate_size": spec.inner,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.hidden // spec.heads,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": spec.tie,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _weights(raw: dict[str, Any], seed: int) -> dict[str, NDArray[np.float32]]:
    """Draw the tensors that `gather_weights` asks for."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, NDArray[np.float32]] = {}

    def draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if name.endswith("norm.weight"):
            value = 1 + 0.1 * rng.standard_normal(shape, np.float32)
        else:
            # Wide enough that logits differ clearly and greedy tokens do not hang on rounding.
            value = rng.standard_normal(shape, np.float32) * (1.6 / np.sqrt(shape[-1]))
        drawn[name] = value.astype(np.float32)
        return drawn[name]

    gather_weights(parse_config(raw, "the random model"), draw)
    return drawn


def _train_tokenizer(vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    return tokenizer


def _corpus() -> list[str]:
    sources = [Path(module) for module in (json.__file__, np.__file__)]
    files = [path for source in sources for path in sorted(source.parent.glob("*.py"))]
    return [path.read_text(encoding="utf-8") for path in files]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
