"""Compilers for GPUs take the kernel for KV in place, and an interpreter finds it right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")
triton = pytest.importorskip("triton", reason="Triton is not installed")

from spinney.engine.tensor import paged_kernel  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION"),
    pytest.mark.skipif(paged_kernel.INTERPRETED, reason="what is interpreted is not compiled"),
]

INTERPRETER_S = 240
"""Enough by far, also on a busy machine."""
TARGETS = [(80, "bf16"), (90, "bf16"), (80, "fp16"), (80, "fp32")]
SHARED_BYTES = 99 * 1024
"""What a program may have on the smallest GPUs with bfloat16 (8.6, 8.9)."""


@pytest.mark.parametrize(("capability", "dtype"), TARGETS, ids=str)
def test_the_kernels_compile_for_gpus(
    capability: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = pytest.importorskip("triton.compiler")
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no compiler for NVIDIA's GPUs")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def compile(source: Any, pointers: dict[str, str], constants: dict[str, int]) -> Any:
        rest = {
            name: "fp32" if name == "scale" else "i32"
            for name in source.__annotations__
            if name not in (*pointers, *constants, "return")
        }
        types = pointers | rest | dict.fromkeys(constants, "constexpr")
        signature = {name: types[name] for name in source.__annotations__ if name != "return"}
        ast = compiler.ASTSource(triton.jit(source), signature=signature, constexprs=constants)
        return triton.compile(ast, target=target)

    sizes = {"DIM": 128, "WIDTH": 128}
    half = {"partial": "*fp32", "weight": "*fp32"}
    share = compile(
        paged_kernel._share_source,
        {"query": f"*{dtype}", "pool": f"*{dtype}", "tables": "*i32", "lengths": "*i32"} | half,
        sizes
        | {"GROUP": 4, "ROWS": 16, "SIZE": 16, "UPCAST": False}
        | {"STEP": paged_kernel.TILE // (2 if dtype == "fp32" else 1)},
    )
    assert share.metadata.shared <= SHARED_BYTES
    assert ("mma.sync" in share.asm["ptx"]) == (dtype != "fp32"), "no matrix units are used"
    join = compile(paged_kernel._join_source, half | {"out": f"*{dtype}"}, sizes | {"SHARES": 32})
    assert join.asm["cubin"]


def test_the_interpreter_finds_the_kernels_right() -> None:
    module = Path(__file__).with_name("test_paged_kernel.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(module)],
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=INTERPRETER_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, done.stdout
