"""``spinney engine``: a model, served by this process.

Invariant: the number of threads is settled before the libraries that read it are loaded.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from spinney.cmd.worker import run_worker, worker_options, worker_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.clock import Clock
    from spinney.engine.assembly import Engine
    from spinney.ids import IdSource
    from spinney.tracing import Tracer

EXAMPLES = """\b
Examples:
  spinney engine                              the demo model on http://127.0.0.1:8000
  spinney engine --model ./llama --port 8001  a Hugging Face directory
  spinney engine --role prefill --port 8001   computes prompts, leases their KV
  spinney engine --role decode --port 8002    pulls KV and decodes
  curl -s 127.0.0.1:8000/v1/completions -H 'content-type: application/json' \\
       -d '{"prompt": "Once upon a time", "max_tokens": 20}'
"""


@click.command(epilog=EXAMPLES, context_settings={"show_default": True})
@click.option(
    "--model", default="demo", help="A Hugging Face model directory, or 'demo', which ships."
)
@click.option("--executor", type=click.Choice(["numpy", "torch"]), default="numpy")
@click.option("--threads", default=1, help="Threads of the arithmetic.")
@click.option("--device", default="cpu", help="Torch device, as cuda:0.")
@click.option("--dtype", default="float32", help="Torch element type of weights and KV.")
@worker_options
def engine(**options: Any) -> None:
    """Serve a model over HTTP, as vLLM would: OpenAI's API, metrics, KV events, KV hand-over.

    A prefill worker is asked for one token with kv_transfer_params {"do_remote_decode": true} and
    answers with parameters; the same request with those goes to a decode worker, which pulls the
    KV and streams the answer.
    """
    # Libraries read these when they are loaded, which is below.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(options["threads"]))
    settings = worker_settings(
        options,
        executor=options["executor"],
        threads=options["threads"],
        torch_device=options["device"],
        torch_dtype=options["dtype"],
    )

    def build(clock: Clock, ids: IdSource, timer: Callable[[], float], tracer: Tracer) -> Engine:
        from spinney.engine.assembly import build_engine

        return build_engine(settings, clock=clock, ids=ids, timer=timer, tracer=tracer)

    run_worker(options, build)
