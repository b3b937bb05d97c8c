"""The demo model's byte-level BPE tokenizer and its chat template.

Invariant: `render` and the Jinja template give the same text for the same messages, so the model
is asked in exactly the form it was trained on.
"""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .corpus import Message

END = "<|end|>"
SPECIAL = (END, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('the roles are system, user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges from *texts*; the special tokens get the lowest ids, `END` is 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def render(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """Return the pieces of a document and whether the model should learn to write each.

    A message of role ``text`` stands alone, without a role token.
    """
    pieces = []
    for message in messages:
        if message.role == "text":
            pieces.append((message.content + END, True))
            continue
        pieces.append((f"<|{message.role}|>", False))
        pieces.append((message.content.strip() + END, message.role == "assistant"))
    return pieces
