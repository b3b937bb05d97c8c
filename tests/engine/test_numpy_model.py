"""The NumPy executor against a plain forward pass; checkpoints in all the forms that load."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from spinney.engine.checkpoint import Checkpoint, load_checkpoint
from spinney.engine.executor import Batch, SequenceStep
from spinney.engine.model import ModelConfig, rope_frequencies
from spinney.engine.numpy_executor import NumpyExecutor
from spinney.engine.random_model import RandomModel, write_random_model
from spinney.engine.tokenizer import load_tokenizer
from spinney.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path

Floats = NDArray[np.float64]


def reference_logits(checkpoint: Checkpoint, tokens: list[int]) -> Floats:
    """Logits after each token: one sequence, double precision, nothing clever."""
    config, weights = checkpoint.config, checkpoint.weights
    x = weights.embed[tokens].astype(np.float64)
    for layer in weights.layers:
        y = norm(x, layer.input_norm, config)
        q = heads(y @ layer.q.T + (layer.q_bias if layer.q_bias is not None else 0), config)
        k = heads(y @ layer.k.T + (layer.k_bias if layer.k_bias is not None else 0), config)
        v = heads(y @ layer.v.T + (layer.v_bias if layer.v_bias is not None else 0), config)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = norm(q, layer.q_norm, config), norm(k, layer.k_norm, config)
        q, k = rotated(q, config), rotated(k, config)
        out = np.zeros_like(q)
        for head in range(config.num_heads):
            shared = head // (config.num_heads // config.num_kv_heads)
            for at in range(len(tokens)):
                scores = k[: at + 1, shared] @ q[at, head] / np.sqrt(config.head_dim)
                weight = np.exp(scores - scores.max())
                out[at, head] = (weight / weight.sum()) @ v[: at + 1, shared]
        x = x + out.reshape(len(tokens), -1) @ layer.o.T
        y = norm(x, layer.post_norm, config)
        gate = y @ layer.gate.T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ layer.up.T)) @ layer.down.T
    result: Floats = norm(x, weights.norm, config) @ weights.lm_head.T
    return result


def norm(x: Floats, weight: NDArray[np.float32], config: ModelConfig) -> Floats:
    scaled: Floats = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.rms_norm_eps) * weight
    return scaled


def heads(x: Floats, config: ModelConfig) -> Floats:
    return x.reshape(len(x), -1, config.head_dim)


def rotated(x: Floats, config: ModelConfig) -> Floats:
    angles = np.arange(len(x))[:, None] * rope_frequencies(config).astype(np.float64)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def greedy_reference(checkpoint: Checkpoint, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(reference_logits(checkpoint, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def greedy(
    executor: NumpyExecutor, prompts: list[list[int]], count: int, *, chunk: int
) -> list[list[int]]:
    """Run *prompts* in one batch after another, in chunks, each in scattered blocks."""
    size = executor.layout.block_size
    ids = np.random.default_rng(1).permutation(executor.num_blocks).tolist()
    tables = []
    for prompt in prompts:
        needed = -(-(len(prompt) + count) // size)
        tables.append([ids.pop() for _ in range(needed)])
    tokens = [list(prompt) for prompt in prompts]
    done = [0] * len(prompts)
    while any(len(t) < len(p) + count for t, p in zip(tokens, prompts, strict=True)):
        steps, who = [], []
        for n, known in enumerate(tokens):
            if len(known) == len(prompts[n]) + count:
                continue
            part = known[done[n] : done[n] + chunk]
            last = done[n] + len(part) == len(known)
            steps.append(SequenceStep(part, done[n], tables[n], last))
            done[n] += len(part)
            if last:
                who.append(n)
        logits = executor.step(Batch(tuple(steps)))
        assert logits.shape == (len(who), checkpoint_vocab(executor))
        assert logits.dtype == np.float32
        for n, row in zip(who, logits, strict=True):
            tokens[n].append(int(row.argmax()))
    return [known[len(prompt) :] for known, prompt in zip(tokens, prompts, strict=True)]


def checkpoint_vocab(executor: NumpyExecutor) -> int:
    return executor._config.vocab_size


def some_prompts(count: int, vocab: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, vocab, 1 + 9 * n).tolist() for n in range(count)]


LLAMA3 = {
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}
FAMILIES = [
    pytest.param(RandomModel(), {}, id="llama"),
    pytest.param(RandomModel(tie=True, kv_heads=4), {}, id="tied-without-grouping"),
    pytest.param(RandomModel(), LLAMA3, id="llama3-rope"),
    pytest.param(
        RandomModel(), {"rope_scaling": {"type": "linear", "factor": 2.0}}, id="linear-rope"
    ),
    pytest.param(RandomModel(family="Qwen2ForCausalLM"), {}, id="qwen2-bias"),
    pytest.param(RandomModel(family="Qwen3ForCausalLM", tie=True), {}, id="qwen3-head-norms"),
    pytest.param(RandomModel(), {"head_dim": 32}, id="wide-heads"),
]


@pytest.mark.parametrize(("spec", "config"), FAMILIES)
def test_greedy_tokens_equal_those_of_a_plain_forward_pass(
    tmp_path: Path, spec: RandomModel, config: dict[str, Any]
) -> None:
    checkpoint = load_checkpoint(write_random_model(tmp_path, spec, **config))
    executor = NumpyExecutor(checkpoint, num_blocks=64, block_size=8)
    prompts = some_prompts(5, checkpoint.config.vocab_size)
    expected = [greedy_reference(checkpoint, prompt, 6) for prompt in prompts]
    for chunk in (64, 7, 1):
        assert greedy(executor, prompts, 6, chunk=chunk) == expected


def test_logits_are_close_to_the_plain_forward_pass(tiny_model: Path) -> None:
    checkpoint = load_checkpoint(tiny_model)
    executor = NumpyExecutor(checkpoint, num_blocks=64, block_size=16)
    tokens = np.random.default_rng(2).integers(0, 500, 200).tolist()
    found = executor.step(Batch((SequenceStep(tokens, 0, list(range(13)), True),)))
    np.testing.assert_allclose(found[0], reference_logits(checkpoint, tokens)[-1], atol=2e-3)


def test_blocks_survive_the_way_through_bytes(tiny_model: Path) -> None:
    checkpoint = load_checkpoint(tiny_model)
    one, other = (NumpyExecutor(checkpoint, num_blocks=8, block_size=4) for _ in range(2))
    tokens = list(range(10, 21))
    one.step(Batch((SequenceStep(tokens[:-1], 0, [5, 0, 3], False),)))
    wire = np.empty(3 * one.layout.block_bytes, np.uint8)
    one.read_blocks([5, 0, 3], wire)
    other.write_blocks([1, 7, 2], wire)
    last = SequenceStep(tokens[-1:], 10, [1, 7, 2], True)
    here = SequenceStep(tokens[-1:], 10, [5, 0, 3], True)
    np.testing.assert_array_equal(other.step(Batch((last,))), one.step(Batch((here,))))
    again = np.empty_like(wire)
    other.read_blocks([1, 7, 2], again)
    assert one.layout == other.layout
    # Layer, then keys or values, then token, as the layout says.
    assert wire.view(np.float32).size == 3 * 2 * 2 * 4 * 2 * 16
    shape = one.layout.shard_shape(0)
    np.testing.assert_array_equal(
        wire.view(np.float32).reshape(3, *shape)[1, :, 0], one._keys[:, 0]
    )
    assert shape == (2, 2, 4, 2, 16)
    with pytest.raises(ValueError, match="2 blocks are"):
        other.write_blocks([1, 2], wire)


def test_layouts_differ_when_weights_or_block_sizes_do(tmp_path: Path) -> None:
    first = load_checkpoint(write_random_model(tmp_path / "a", RandomModel(seed=1)))
    second = load_checkpoint(write_random_model(tmp_path / "b", RandomModel(seed=2)))
    digests = {
        NumpyExecutor(checkpoint, num_blocks=2, block_size=size).layout
        for checkpoint in (first, second)
        for size in (8, 16)
    }
    assert len(digests) == 4


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_weights_load_without_torch(tmp_path: Path, dtype: str) -> None:
    directory = write_random_model(tmp_path, RandomModel())
    path = directory / "model.safetensors"
    tensors = load_file(path)
    if dtype == "F16":
        halves = {name: value.astype(np.float16) for name, value in tensors.items()}
        save_file(halves, path)
        expected = {name: value.astype(np.float32) for name, value in halves.items()}
    else:
        bits = {name: value.view(np.uint32) >> 16 for name, value in tensors.items()}
        write_bfloat16(path, {name: value.astype(np.uint16) for name, value in bits.items()})
        expected = {name: (value << 16).view(np.float32) for name, value in bits.items()}
    loaded = load_checkpoint(directory).weights
    np.testing.assert_array_equal(loaded.embed, expected["model.embed_tokens.weight"])
    np.testing.assert_array_equal(
        loaded.layers[1].down, expected["model.layers.1.mlp.down_proj.weight"]
    )


def write_bfloat16(path: Path, tensors: dict[str, NDArray[np.uint16]]) -> None:
    header: dict[str, Any] = {}
    data = b""
    for name, value in tensors.items():
        header[name] = {
            "dtype": "BF16",
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + value.nbytes],
        }
        data += value.tobytes()
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def test_sharded_weights_load_by_their_index(tmp_path: Path) -> None:
    directory = write_random_model(tmp_path, RandomModel())
    whole = load_checkpoint(directory)
    shard(directory)
    sharded = load_checkpoint(directory)
    np.testing.assert_array_equal(whole.weights.layers[1].q, sharded.weights.layers[1].q)


def shard(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    (directory / "model.safetensors").unlink()
    weight_map = {}
    for n, part in enumerate((names[::2], names[1::2])):
        file = f"model-{n}.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def change(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    raw = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


BROKEN = [
    ("no-config", lambda d: (d / "config.json").unlink(), "config.json: missing"),
    ("config-no-json", lambda d: (d / "config.json").write_text("{"), "cannot be read as JSON"),
    ("config-a-list", lambda d: (d / "config.json").write_text("[]"), "a JSON object is needed"),
    ("no-weights", lambda d: (d / "model.safetensors").unlink(), "model.safetensors: missing"),
    ("other-family", lambda d: change(d, architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
    ("no-size", lambda d: change(d, hidden_size=None), "hidden_size is missing"),
    ("bad-size", lambda d: change(d, num_hidden_layers="2"), "num_hidden_layers is '2'"),
    ("more-layers", lambda d: change(d, num_hidden_layers=3), "model.layers.2.*is missing"),
    ("other-width", lambda d: change(d, intermediate_size=8), "config.json implies"),
    ("groups", lambda d: change(d, num_key_value_heads=3), "must be a multiple of"),
    ("quantised", lambda d: change(d, quantization_config={"bits": 4}), "quantization_config"),
    ("activation", lambda d: change(d, hidden_act="gelu"), "hidden_act is 'gelu'"),
    ("yarn", lambda d: change(d, rope_scaling={"rope_type": "yarn"}), "rope scaling is 'yarn'"),
    ("half-rope", lambda d: change(d, rope_scaling={"type": "linear"}), "lacks factor"),
    (
        "cut-short",
        lambda d: (d / "model.safetensors").write_bytes(
            (d / "model.safetensors").read_bytes()[:-5000]
        ),
        "damaged or cut short",
    ),
    (
        "no-safetensors",
        lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 100),
        "its header claims",
    ),
    (
        "missing-shard",
        lambda d: (shard(d), (d / "model-1.safetensors").unlink()),
        "model-1.safetensors: missing",
    ),
]


@pytest.mark.parametrize(
    ("damage", "message"), [(d, m) for _, d, m in BROKEN], ids=[name for name, _, _ in BROKEN]
)
def test_what_is_wrong_in_a_model_directory_is_named(
    tmp_path: Path, damage: Any, message: str
) -> None:
    directory = write_random_model(tmp_path, RandomModel(layers=2))
    damage(directory)
    with pytest.raises(BadInputError, match=message) as caught:
        load_checkpoint(directory)
    assert str(directory) in str(caught.value)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such model directory"):
        load_checkpoint(tmp_path / "absent")


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    directory = write_random_model(tmp_path, RandomModel())
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"tokenizer\.json: cannot be read"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(BadInputError, match=r"tokenizer\.json: missing"):
        load_tokenizer(directory)


@pytest.mark.transformers
@pytest.mark.parametrize(("spec", "config"), FAMILIES)
def test_greedy_tokens_equal_those_of_transformers(
    tmp_path: Path, spec: RandomModel, config: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    directory = write_random_model(tmp_path, spec, **config)
    checkpoint = load_checkpoint(directory)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    executor = NumpyExecutor(checkpoint, num_blocks=64, block_size=8)
    prompts = some_prompts(5, checkpoint.config.vocab_size)
    for prompt, ours in zip(prompts, greedy(executor, prompts, 16, chunk=9), strict=True):
        ids = torch.tensor([prompt])
        for _ in ours:
            ids = torch.cat([ids, theirs(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert ids[0, len(prompt) :].tolist() == ours
