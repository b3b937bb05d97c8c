"""``spinney engine``: a model, served by this process.

Invariant: the number of threads is settled before the libraries that read it are loaded.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from spinney.cmd.group import MemberModel, place_in_group, run_member
from spinney.cmd.worker import run_worker, worker_options, worker_settings
from spinney.engine.decode_options import DECODE_GRAPH, PAGED_ATTENTION

if TYPE_CHECKING:
    from collections.abc import Callable

    from spinney.clock import Clock
    from spinney.cmd.group import Place
    from spinney.engine.assembly import Engine, EngineSettings
    from spinney.engine.group.member import Membership
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
@click.option(
    "--decode-graph",
    type=click.Choice(DECODE_GRAPH),
    default="auto",
    help="Capture torch's decode step as a CUDA graph, compile it, or run it eagerly.",
)
@click.option(
    "--decode-graph-max-batch",
    default=0,
    help="Largest batch to capture; 0 takes --max-num-seqs.",
)
@click.option(
    "--paged-attention",
    type=click.Choice(PAGED_ATTENTION),
    default="auto",
    help="Decode by a Triton kernel that reads KV in place, or gather KV first.",
)
@click.option(
    "--kv-nixl/--no-kv-nixl",
    default=None,
    help="Move KV between hosts by NIXL. [default: where it is installed]",
)
@worker_options
def engine(**options: Any) -> None:
    """Serve a model over HTTP, as vLLM would: OpenAI's API, metrics, KV events, KV hand-over.

    A prefill worker is asked for one token with kv_transfer_params {"do_remote_decode": true} and
    answers with parameters; the same request with those goes to a decode worker, which pulls the
    KV and streams the answer.

    With --tensor-parallel-size 2 or more it is one of so many processes that share the model: rank
    0 serves, the others compute with it, and all end when one does.
    """
    # Libraries read these when they are loaded, which is below.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, str(options["threads"]))
    from spinney.kv.transfer import nixl

    settings = worker_settings(
        options,
        executor=options["executor"],
        threads=options["threads"],
        torch_device=options["device"],
        torch_dtype=options["dtype"],
        decode_graph=options["decode_graph"],
        decode_graph_max_batch=options["decode_graph_max_batch"],
        paged_attention=options["paged_attention"],
        kv_nixl=nixl.installed() if options["kv_nixl"] is None else options["kv_nixl"],
    )

    place = place_in_group(options)
    if place.rank:
        return run_member(options, place, lambda: _model_part(settings, place.rank))
    return _serve_engine(options, settings, place)


def _serve_engine(options: dict[str, Any], settings: EngineSettings, place: Place) -> None:
    from spinney.engine.assembly import arithmetic, build_engine, load_model
    from spinney.engine.group.leader import Terms

    model = load_model(settings)
    terms = Terms(
        place.ranks,
        model.checkpoint.fingerprint,
        arithmetic(settings),
        settings.block_size,
        model.num_blocks,
    )
    leader = place.leader()
    # Given away, so that the weights are not kept beside what the executor makes of them.
    loaded = [model]
    del model

    def build(clock: Clock, ids: IdSource, timer: Callable[[], float], tracer: Tracer) -> Engine:
        return build_engine(
            settings,
            clock=clock,
            ids=ids,
            timer=timer,
            tracer=tracer,
            model=loaded.pop(),
            group=leader,
        )

    run_worker(options, build, None if leader is None else lambda: leader.form(terms))


def _model_part(settings: EngineSettings, rank: int) -> MemberModel:
    """Return what a member computes with its part of the model."""
    from spinney.engine.assembly import arithmetic, load_model, make_executor
    from spinney.engine.group.data_link import MemberSum, obey
    from spinney.engine.part import Part

    model = load_model(settings, rank)
    fingerprint, loaded = model.checkpoint.fingerprint, [model]
    del model

    def build(rank: int, membership: Membership) -> Callable[[], None]:
        part = Part(rank, settings.ranks, MemberSum(membership.link))
        sizes = replace(settings, block_size=membership.block_size)
        executor = make_executor(sizes, loaded.pop().checkpoint, membership.num_blocks, part)
        heads = len(executor.layout.shard_heads(part.shard(executor.layout)))
        block_bytes = executor.layout.block_bytes // executor.layout.kv_heads * heads
        return lambda: obey(membership.link, executor, block_bytes)

    return MemberModel(fingerprint, arithmetic(settings), build)
