"""The torch executor says what the NumPy one says, and takes over its KV blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import spinney.engine
from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.numpy_executor import NumpyExecutor
from spinney.engine.random_model import RandomModel, write_random_model
from spinney.errors import BadInputError

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from spinney.engine.torch_executor import TorchExecutor  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spinney.engine.checkpoint import Checkpoint
    from spinney.engine.executor import Executor

pytestmark = pytest.mark.torch

BLOCK = 8
BLOCKS = 96
DEMO = Path(spinney.engine.__file__).parent / "models" / "demo"
FAMILIES = {
    "llama": RandomModel(tie=True),
    "qwen2": RandomModel("Qwen2ForCausalLM", seed=1),
    "qwen3": RandomModel("Qwen3ForCausalLM", kv_heads=1, seed=2),
}
CUDA = pytest.param(
    "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")
)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    name = request.param
    return write_random_model(tmp_path_factory.mktemp(name) / "model", FAMILIES[name])


@pytest.fixture(scope="module")
def checkpoint(directory: Path) -> Checkpoint:
    return load_checkpoint(directory)


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(4, 400, count)]


def table(length: int, seed: int = 0) -> list[int]:
    """Blocks for *length* tokens, in an order that is not that of memory."""
    order = np.random.default_rng(seed).permutation(BLOCKS)
    return [int(block) for block in order[: -(-length // BLOCK)]]


def prefill(executor: Executor, prompt: Sequence[int], blocks: Sequence[int], chunk: int) -> Any:
    logits = None
    for start in range(0, len(prompt), chunk):
        step = SequenceStep(prompt[start : start + chunk], start, blocks, True)
        logits = executor.step(Batch((step,)))[0]
    return logits


def greedy(
    executor: Executor, prompt: Sequence[int], count: int, *, chunk: int = 1000, seed: int = 0
) -> list[int]:
    """Prefill *prompt* in chunks, then decode *count* tokens."""
    blocks = table(len(prompt) + count, seed)
    found = [int(prefill(executor, prompt, blocks, chunk).argmax())]
    return found + decode(executor, found[0], len(prompt), blocks, count - 1)


def decode(
    executor: Executor, token: int, start: int, blocks: Sequence[int], count: int
) -> list[int]:
    found = []
    for at in range(start, start + count):
        logits = executor.step(Batch((SequenceStep([token], at, blocks, True),)))
        token = int(logits[0].argmax())
        found.append(token)
    return found


def numpy_executor(checkpoint: Checkpoint) -> NumpyExecutor:
    return NumpyExecutor(checkpoint, num_blocks=BLOCKS, block_size=BLOCK)


def torch_executor(checkpoint: Checkpoint, **options: Any) -> TorchExecutor:
    return TorchExecutor(checkpoint, num_blocks=BLOCKS, block_size=BLOCK, **options)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("chunk", [1000, 24, 7], ids=["whole", "blocks", "odd"])
def test_greedy_tokens_equal_those_of_the_numpy_executor(
    checkpoint: Checkpoint, chunk: int, device: str
) -> None:
    prompt = tokens(150)
    want = greedy(numpy_executor(checkpoint), prompt, 24)
    assert greedy(torch_executor(checkpoint, device=device), prompt, 24, chunk=chunk) == want


@pytest.mark.parametrize("held", [0, 11], ids=["from the start", "behind held tokens"])
def test_a_chunk_longer_than_a_tile_attends_as_one(checkpoint: Checkpoint, held: int) -> None:
    prompt, blocks = tokens(600), table(600)
    want = prefill(numpy_executor(checkpoint), prompt, blocks, 600)
    executor = torch_executor(checkpoint)
    if held:
        prefill(executor, prompt[:held], blocks, held)
    (got,) = executor.step(Batch((SequenceStep(prompt[held:], held, blocks, True),)))
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_a_mixed_ragged_batch_gives_what_each_sequence_gives_alone(checkpoint: Checkpoint) -> None:
    ours, theirs = torch_executor(checkpoint), numpy_executor(checkpoint)
    order = table(BLOCKS * BLOCK)
    lengths = [3, 5, 90, 6, 40]
    steps = []
    for number, length in enumerate(lengths):
        blocks, order = order[:14], order[14:]
        prompt = tokens(length, number)
        for executor in (ours, theirs):
            prefill(executor, prompt, blocks, 1000)
        count = 9 if number == 3 else 1
        steps.append(SequenceStep(tokens(count, 50 + number), length, blocks, number != 1))
    got = ours.step(Batch(tuple(steps)))
    alone = [theirs.step(Batch((step,)))[0] for step in steps if step.wants_logits]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.stack(alone), rtol=1e-3, atol=1e-3)


def test_a_step_in_which_nobody_wants_logits_returns_no_rows(checkpoint: Checkpoint) -> None:
    executor = torch_executor(checkpoint)
    got = executor.step(Batch((SequenceStep(tokens(9), 0, table(9), False),)))
    assert got.shape == (0, checkpoint.config.vocab_size)


@pytest.mark.parametrize("direction", ["numpy to torch", "torch to numpy"])
def test_a_decode_worker_goes_on_with_the_blocks_of_the_other_executor(
    checkpoint: Checkpoint, direction: str
) -> None:
    executors: list[Executor] = [numpy_executor(checkpoint), torch_executor(checkpoint)]
    source, target = executors if direction == "numpy to torch" else reversed(executors)
    assert source.layout == target.layout
    prompt = tokens(75)
    want = greedy(source, prompt, 20)

    here, there = table(95), table(95, seed=9)
    first = int(prefill(source, prompt, here, 32).argmax())
    held = -(-len(prompt) // BLOCK)
    wire = np.zeros(held * source.layout.block_bytes, np.uint8)
    source.read_blocks(here[:held], wire)
    wire.flags.writeable = False
    target.write_blocks(there[:held], wire)
    assert [first, *decode(target, first, len(prompt), there, 19)] == want


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_blocks_come_back_as_they_were_written(checkpoint: Checkpoint, dtype: str) -> None:
    executor = torch_executor(checkpoint, dtype=dtype)
    assert executor.layout.dtype == dtype
    data = np.random.default_rng(3).integers(0, 256, 3 * executor.layout.block_bytes, np.uint8)
    executor.write_blocks([5, 2, 80], data)
    out = np.zeros_like(data)
    executor.read_blocks([5, 2, 80], out)
    np.testing.assert_array_equal(out, data)
    size = executor.layout.block_bytes
    executor.read_blocks([80], one := np.zeros(size, np.uint8))
    np.testing.assert_array_equal(one, data[2 * size :])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_logits_are_close_to_those_in_float32(
    checkpoint: Checkpoint, dtype: str
) -> None:
    prompt, blocks = tokens(60), table(60)
    want = prefill(numpy_executor(checkpoint), prompt, blocks, 1000)
    got = prefill(torch_executor(checkpoint, dtype=dtype), prompt, blocks, 16)
    assert np.corrcoef(got, want)[0, 1] > 0.99


def test_a_buffer_of_the_wrong_size_is_refused(checkpoint: Checkpoint) -> None:
    executor = torch_executor(checkpoint)
    with pytest.raises(ValueError, match=r"2 blocks are \d+ bytes, the buffer has 10"):
        executor.read_blocks([0, 1], np.zeros(10, np.uint8))
    with pytest.raises(ValueError, match="the buffer has 10"):
        executor.write_blocks([0, 1], np.zeros(10, np.uint8))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "int4"}, "dtype is 'int4'"), ({"device": "abacus"}, "device 'abacus' cannot")],
    ids=["dtype", "device"],
)
def test_a_dtype_or_device_that_cannot_be_used_is_named(
    checkpoint: Checkpoint, options: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        torch_executor(checkpoint, **options)


def test_closing_twice_is_allowed(checkpoint: Checkpoint) -> None:
    executor = torch_executor(checkpoint)
    executor.close()
    executor.close()


def reference(directory: Path, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy tokens of the transformers library, which does not stop at an end token."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([list(prompt)])
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return [int(token) for token in found[0, len(prompt) :]]


@pytest.mark.transformers
@pytest.mark.filterwarnings("default")
def test_greedy_tokens_equal_those_of_transformers(directory: Path, checkpoint: Checkpoint) -> None:
    prompt = tokens(90, 4)
    assert greedy(torch_executor(checkpoint), prompt, 24) == reference(directory, prompt, 24)


@pytest.mark.transformers
@pytest.mark.filterwarnings("default")
def test_the_demo_model_says_the_same_in_all_three() -> None:
    from tokenizers import Tokenizer

    torch.set_num_threads(1)
    text = "<|user|>What is a spinney?<|end|><|assistant|>"
    prompt = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text).ids
    checkpoint = load_checkpoint(DEMO)
    want = reference(DEMO, prompt, 16)
    assert greedy(numpy_executor(checkpoint), prompt, 16) == want
    assert greedy(torch_executor(checkpoint), prompt, 16) == want
