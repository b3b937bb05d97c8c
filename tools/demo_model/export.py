"""Writes a trained demo model as a Hugging Face directory, with an honest model card."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from .network import Llama, Shape
from .tokenizer import CHAT_TEMPLATE, END, SPECIAL
from .topics import load_topics

WEIGHTS = torch.float16
CARD = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# The Spinney demo model

A Llama of {parameters:,} parameters ({layers} layers, hidden size {hidden_size}, {heads} heads
and {kv_heads} KV heads of {head_dim}, tied embeddings, {vocab_size:,} byte-level BPE tokens,
{positions:,} positions), stored in float16. It ships with Spinney so that a first try of a service
needs no download and gives words instead of noise.

**Data.** Only text made by the generator in `tools/demo_model`: questions and answers about model
serving, woods, animals, weather and tools, and short stories from a few plots. No text from
anywhere else. The text has the licence of the project.

**Training.** Seed {seed}, {steps:,} steps, {tokens:,} tokens, {minutes:.0f} minutes on one thread
of a CPU shared with other work; bfloat16 arithmetic, Muon and AdamW. Loss on documents of the same
generator with another seed: {held_out:.3f} nats a token. `python -m tools.demo_model.train` makes
it again.

**What it can do.** Answer questions of the kind it was trained on, in several wordings; keep to
one sentence when asked; tell a short story about an animal of the woods; say that it does not know.
Its answers about serving are sentences of the generator; the model repeats them.

**What it cannot do.** Almost everything else. It knows nothing beyond its {topics} topics, does not
reason, calculate or translate, and reads only English. Asked about anything else it says that it
does not know, or answers a question that was not asked. Use it for trying out and testing a
service, and for nothing else.
"""


@dataclass(frozen=True, slots=True)
class Record:
    """What the model card says about the training."""

    seed: int
    steps: int
    tokens: int
    minutes: float
    held_out: float


def export(network: Llama, tokenizer: Tokenizer, shape: Shape, record: Record, out: Path) -> None:
    """Write the model directory *out*; existing files of these names are replaced."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"model.{name}": parameter.detach().to(WEIGHTS).contiguous()
        for name, parameter in network.named_parameters()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save(str(out / "tokenizer.json"))
    _write(out / "config.json", config(shape))
    _write(out / "generation_config.json", {"eos_token_id": 0, "pad_token_id": 0})
    _write(out / "tokenizer_config.json", tokenizer_config(shape))
    (out / "README.md").write_text(card(shape, record, tensors), "utf-8")


def config(shape: Shape) -> dict[str, Any]:
    """Return the content of ``config.json``."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_positions,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "float16",
    }


def tokenizer_config(shape: Shape) -> dict[str, Any]:
    """Return the content of ``tokenizer_config.json``."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_positions,
        "bos_token": None,
        "eos_token": END,
        "pad_token": END,
        "additional_special_tokens": list(SPECIAL[1:]),
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def card(shape: Shape, record: Record, tensors: dict[str, torch.Tensor]) -> str:
    """Return the model card."""
    return CARD.format(
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        layers=shape.layers,
        hidden_size=shape.hidden_size,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        positions=shape.max_positions,
        seed=record.seed,
        steps=record.steps,
        tokens=record.tokens,
        minutes=record.minutes,
        held_out=record.held_out,
        topics=len(load_topics()),
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
