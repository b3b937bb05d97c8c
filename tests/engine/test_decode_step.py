"""A decode step of fixed shape says what the eager one says, whatever the batch is padded to."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from spinney.engine.checkpoint import load_checkpoint
from spinney.engine.decode_options import DecodeOptions
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.part import Part
from spinney.engine.random_model import RandomModel, write_random_model
from spinney.errors import BadInputError

torch = pytest.importorskip("torch", reason="the torch extra is not installed")

from spinney.engine.tensor import decode_step  # noqa: E402
from spinney.engine.tensor.attention import GatherAttention  # noqa: E402
from spinney.engine.tensor.pool import KVPool  # noqa: E402
from spinney.engine.tensor.replay import CaptureError, Plain, check_equal  # noqa: E402
from spinney.engine.tensor.transformer import Transformer  # noqa: E402
from spinney.engine.torch_executor import TorchExecutor  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from spinney.engine.checkpoint import Checkpoint

pytestmark = pytest.mark.torch

BLOCK, BLOCKS, MOST = 4, 96, 5
FAMILIES = {
    "llama": RandomModel(heads=6, kv_heads=3, hidden=96, inner=101, tie=True),
    "qwen2": RandomModel("Qwen2ForCausalLM", seed=1),
    "qwen3": RandomModel("Qwen3ForCausalLM", kv_heads=1, seed=2),
}


class Counting(Plain):
    """Keeps which shapes were captured and which ran."""

    def __init__(self) -> None:
        self.captured: list[tuple[int, ...]] = []
        self.ran: list[tuple[int, ...]] = []

    def capture(self, step: Any, inputs: Tensor) -> Callable[[], Tensor]:
        shape = tuple(inputs.shape)
        self.captured.append(shape)
        run = super().capture(step, inputs)

        def replay() -> Tensor:
            self.ran.append(shape)
            return run()

        return replay


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Writes down operations with the very tensors that they took and made."""

    def __init__(self) -> None:
        super().__init__()
        self.tape: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        taken = {memory_of(value) for value in tensors_of((args, kwargs))}
        made = [value for value in tensors_of(result) if memory_of(value) not in taken]
        self.tape.append((op, args, kwargs or {}, made))
        return result


def tensors_of(tree: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def memory_of(value: Tensor) -> int:
    return int(value.untyped_storage().data_ptr())


class Taped(Plain):
    """What a CUDA graph is, on a CPU: the operations of one run again, on the same memory.

    The step's Python does not run again; whatever it took from there is as it was.
    """

    def capture(self, step: Any, inputs: Tensor) -> Callable[[], Tensor]:
        with Recorder() as recorder:
            logits: Tensor = step(inputs)

        def replay() -> Tensor:
            for op, args, kwargs, made in recorder.tape:
                again = tensors_of(op(*args, **kwargs))
                for target, value in zip(made, again, strict=False):
                    target.copy_(value)
            return logits

        return replay


class Breaking(Plain):
    """Captures what it is asked for *good* times, and then nothing more."""

    def __init__(self, good: int) -> None:
        self.left = good

    def capture(self, step: Any, inputs: Tensor) -> Callable[[], Tensor]:
        self.left -= 1
        if self.left < 0:
            raise CaptureError("out of memory")
        return super().capture(step, inputs)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    directory: Path = tmp_path_factory.mktemp(request.param) / "model"
    return load_checkpoint(write_random_model(directory, FAMILIES[request.param]))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    directory: Path = tmp_path_factory.mktemp("one") / "model"
    return load_checkpoint(write_random_model(directory, RandomModel()))


def executor(checkpoint: Checkpoint, graph: str = "static", **fields: Any) -> TorchExecutor:
    sizes = {"num_blocks": BLOCKS, "block_size": BLOCK, "threads": 1}
    part = fields.pop("part", Part())
    options = DecodeOptions(graph, **({"most_sequences": MOST} | fields))
    return TorchExecutor(checkpoint, **sizes, part=part, options=options)


def held(executor: TorchExecutor) -> Any:
    """Everything in the blocks."""
    wire = np.zeros(BLOCKS * executor.layout.block_bytes, np.uint8)
    executor.read_blocks(range(BLOCKS), wire)
    return wire.view(np.float32)


def give_kv(*executors: TorchExecutor, seed: int = 0) -> None:
    """Give all blocks of *executors* the same content."""
    count = BLOCKS * executors[0].layout.block_bytes // 4
    noise = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    for each in executors:
        each.write_blocks(range(BLOCKS), noise.view(np.uint8))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Up to seven sequences over blocks of their own, most of them decoding."""
    order = draw(st.permutations(range(BLOCKS)))
    steps = []
    for _ in range(draw(st.integers(1, MOST + 2))):
        count = draw(st.sampled_from([1, 1, 1, 2, 7]))
        start = draw(st.one_of(st.integers(0, 9), st.integers(0, 45)))
        needed = -(-(start + count) // BLOCK)
        table, order = order[: needed + draw(st.integers(0, 1))], order[needed + 1 :]
        tokens = draw(st.lists(st.integers(4, 500), min_size=count, max_size=count))
        steps.append(SequenceStep(tokens, start, table, draw(st.booleans())))
    return Batch(tuple(steps))


@pytest.mark.parametrize("capture", [Plain, Taped], ids=["run", "replayed"])
@settings(max_examples=30)
@given(drawn=st.lists(batches(), min_size=1, max_size=3))
def test_any_batch_gives_the_eager_logits_and_leaves_the_eager_kv(
    checkpoint: Checkpoint, capture: type[Plain], drawn: list[Batch]
) -> None:
    eager = executor(checkpoint, "eager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_step, "Plain", capture)
        static = executor(checkpoint)
    give_kv(eager, static)
    before = held(eager)
    written = np.zeros(BLOCKS, bool)
    for batch in drawn:
        np.testing.assert_allclose(static.step(batch), eager.step(batch), rtol=1e-3, atol=1e-3)
        for step in batch.sequences:
            written[list(step.block_ids)] = True
    found = held(static)
    np.testing.assert_allclose(found, held(eager), rtol=1e-3, atol=1e-3)
    untouched = np.repeat(~written, before.size // BLOCKS)
    np.testing.assert_array_equal(found[untouched], before[untouched])


def decode_of(count: int, start: int, wants: bool = True) -> Batch:
    per = start // BLOCK + 1
    return Batch(
        tuple(
            SequenceStep([5 + number], start, range(number * per, (number + 1) * per), wants)
            for number in range(count)
        )
    )


def test_buckets_are_captured_once_and_the_smallest_that_holds_a_batch_runs(
    one: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    monkeypatch.setattr(decode_step, "Plain", lambda: counting)
    static = executor(one)
    header = decode_step.HEADER
    # At the start every batch size, the largest first, in the narrowest width.
    assert counting.captured == [(header + 4, batch) for batch in (5, 4, 2, 1)]
    for count, start in ((1, 0), (1, 15), (3, 3), (5, 16), (2, 40), (5, 17), (MOST + 1, 3)):
        static.step(decode_of(count, start))
    wanted = [(1, 4), (1, 4), (4, 4), (5, 6), (2, 12), (5, 6)]
    assert counting.ran == [(header + width, batch) for batch, width in wanted]
    assert counting.captured[4:] == [(header + 6, 5), (header + 12, 2)]


def test_capturing_leaves_the_blocks_alone(
    one: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_step, "Plain", Taped)
    static = executor(one)
    assert static._pool.memory.any(), "nothing ran"
    assert not held(static).any()


def test_more_sequences_or_blocks_than_there_are_buckets_for_run_eagerly(
    one: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting()
    monkeypatch.setattr(decode_step, "Plain", lambda: counting)
    static, eager = executor(one, most_blocks=3), executor(one, "eager")
    give_kv(static, eager)
    for batch in (decode_of(MOST + 1, 3), decode_of(1, 3 * BLOCK)):
        np.testing.assert_allclose(static.step(batch), eager.step(batch), rtol=1e-3, atol=1e-3)
    assert counting.ran == []
    static.step(decode_of(1, 3 * BLOCK - 1))
    assert len(counting.ran) == 1


def test_a_step_whose_logits_nobody_wants_returns_no_rows_and_stores_its_kv(
    one: Checkpoint,
) -> None:
    static, eager = executor(one), executor(one, "eager")
    batch = decode_of(2, 5, wants=False)
    assert static.step(batch).shape == (0, one.config.vocab_size)
    eager.step(batch)
    np.testing.assert_allclose(held(static), held(eager), rtol=1e-3, atol=1e-3)
    assert held(static).any()


def test_padding_does_not_depend_on_what_it_left_in_the_scratch_block(one: Checkpoint) -> None:
    static, eager = executor(one), executor(one, "eager")
    give_kv(static, eager)
    want = eager.step(decode_of(3, 9))
    for _ in range(3):
        np.testing.assert_allclose(static.step(decode_of(3, 9)), want, rtol=1e-3, atol=1e-3)
    static._pool.memory[-1] = 1e4
    np.testing.assert_allclose(static.step(decode_of(3, 9)), want, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_captured_in_service_runs_eagerly_from_then_on_and_it_is_said(
    one: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_step, "Plain", lambda: Breaking(good=4))
    static, eager = executor(one), executor(one, "eager")
    give_kv(static, eager)
    wide = decode_of(2, 30)
    with capture_logs() as lines:
        for batch in (decode_of(2, 9), wide, wide, decode_of(2, 9)):
            np.testing.assert_allclose(static.step(batch), eager.step(batch), rtol=1e-3, atol=1e-3)
    assert [line["reason"] for line in lines if line["log_level"] == "error"] == ["out of memory"]
    assert static.decodes_by == "eager, gather"


def test_what_is_asked_for_by_name_and_cannot_be_captured_is_refused_at_the_start(
    one: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_step, "Plain", lambda: Breaking(good=1))
    with pytest.raises(BadInputError, match=r"--decode-graph static: out of memory; use .* eager"):
        executor(one)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"graph": "cuda"}, "--decode-graph cuda: device cpu is no GPU; use --device cuda"),
        ({"attention": "kernel"}, "--paged-attention kernel: device cpu is no GPU; use .* gather"),
    ],
    ids=["graph", "kernel"],
)
def test_what_needs_a_gpu_is_refused_without_one(
    one: Checkpoint, fields: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BadInputError, match=message):
        executor(one, **fields)


def test_on_a_cpu_auto_is_eager_and_gathers(one: Checkpoint) -> None:
    assert executor(one, "auto").decodes_by == "eager, gather"


class Alone:
    """A collective of one."""

    def total(self, partial: Any) -> Any:
        return partial


def test_a_rank_of_a_group_does_not_compile_its_steps_and_says_why(one: Checkpoint) -> None:
    with capture_logs() as lines:
        rank = executor(one, "compile", part=Part(0, 2, Alone()))
    assert rank.decodes_by == "eager, gather"
    assert [line["reason"] for line in lines] == ["the model is shared"]


@pytest.mark.parametrize(
    "found",
    [torch.tensor([1.0, 2.0, 4.3]), torch.tensor([1.0, float("nan"), 4.0])],
    ids=["another", "no number"],
)
def test_a_capture_that_computes_something_else_is_not_used(found: Tensor) -> None:
    wanted = torch.tensor([1.0, 2.0, 4.0])
    check_equal(wanted + 0.01, wanted)
    with pytest.raises(CaptureError, match=r"off by .*, 0\.2 is allowed"):
        check_equal(found, wanted)


class Watched(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps which devices the operations touch that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            if isinstance(value, torch.Tensor):
                self.devices.add(value.device.type)
        return result


def on_meta(checkpoint: Checkpoint, part: Part) -> Watched:
    """Run a step on a device that knows no values, which ends whatever asks for one."""
    meta, config = torch.device("meta"), checkpoint.config
    model = Transformer(checkpoint, part, meta, torch.bfloat16)
    shape = (config.num_layers, 2, BLOCK, config.num_kv_heads, config.head_dim)
    pool = KVPool(BLOCKS, shape, torch.bfloat16, meta)
    attention = GatherAttention(config.num_kv_heads, BLOCK)
    step = decode_step.DecodeStep(model, pool, attention, Plain(), most_sequences=4, most_blocks=8)
    inputs = torch.zeros((decode_step.HEADER + 8, 4), dtype=torch.int32, device=meta)
    with Watched() as watched, torch.inference_mode():
        logits = step._compute(inputs)
    assert logits.shape == (4, config.vocab_size)
    return watched


def test_a_step_stays_on_its_device_and_asks_for_no_value_so_that_it_can_be_captured(
    checkpoint: Checkpoint,
) -> None:
    assert on_meta(checkpoint, Part()).devices == {"meta"}


def test_a_step_of_a_rank_leaves_its_device_and_cannot_be_captured(one: Checkpoint) -> None:
    with pytest.raises(NotImplementedError, match="meta"):
        on_meta(one, Part(0, 2, Alone()))


needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)


@needs_compiler
@pytest.mark.filterwarnings("default")
def test_a_compiled_step_gives_the_eager_logits_in_two_compilations(one: Checkpoint) -> None:
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    compiled, eager = executor(one, "compile"), executor(one, "eager")
    give_kv(compiled, eager)
    for count, start in ((1, 3), (1, 60), (2, 9), (3, 33), (5, 16), (MOST + 1, 3)):
        batch = decode_of(count, start)
        np.testing.assert_allclose(compiled.step(batch), eager.step(batch), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(held(compiled), held(eager), rtol=1e-3, atol=1e-3)
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.filterwarnings("default")
def test_a_step_that_cannot_be_compiled_is_refused_with_the_compilers_reason(
    one: Checkpoint,
) -> None:
    torch.compiler.reset()
    broken = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with (
        torch._inductor.config.patch(broken),
        pytest.raises(BadInputError, match=r"--decode-graph compile: .* use --decode-graph eager"),
    ):
        executor(one, "compile")
