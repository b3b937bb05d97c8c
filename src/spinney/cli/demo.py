"""``spinney demo``: the main job, step by step, with the commands a user would type.

The demo runs a cluster of its own in a temporary folder, so it neither needs nor touches another,
and takes it down at the end, whatever happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spinney.api.core import Pod
from spinney.api.meta import find_condition, is_true
from spinney.api.names import PART_OF, ROLE
from spinney.api.podgang import PodGang
from spinney.cli.chat import find_front, summary_lines
from spinney.cli.completion import Answer, endpoint, stream_chat
from spinney.cli.session import CommandError, Session, columns, pass_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from spinney.kube.client import KubeClient

READY_S = 90.0
POLL_S = 0.1
QUESTIONS = ("What is a spinney?", "Why split prefill and decode?", "What is a KV block?")
SYSTEM = (
    "You are the guide of a small wood. Answer in plain words, briefly and kindly, "
    "and say so when you do not know."
)
"""Makes the prompt some KV blocks long, as the system prompts of real services do."""
SERVICE = "chat"


@click.command()
@click.option("--keep", is_flag=True, help="Leave the cluster running at the end.")
@pass_session
def demo(session: Session, keep: bool) -> None:
    """Show the main job: a cluster, a disaggregated service, answers, a failure, a gang too big.

    It takes about half a minute, needs no GPU and no network, and cleans up after itself.
    """
    home = Path(tempfile.mkdtemp(prefix="spinney-demo-"))
    # The commands below and the clients of this process mean the demo's cluster and no other.
    os.environ |= {"SPINNEY_HOME": str(home), "KUBECONFIG": str(home / "kubeconfig")}
    show = _Show(session)
    try:
        show.run()
    finally:
        if keep:
            click.echo(f"\nThe cluster goes on: export SPINNEY_HOME={home}")
            click.echo("Stop it with `spinney down --delete-state`.")
        else:
            show.clean_up()


@dataclass(slots=True)
class _Show:
    """The steps, in order; a step that fails raises CommandError."""

    session: Session

    def run(self) -> None:
        """Run all steps."""
        began = self.session.clock.now()
        self._title(1, "A cluster on this machine")
        self._spinney("up", "--port", "0")
        self._say("It is a real Kubernetes API: kubectl works with the kubeconfig above.")
        self._spinney("get", "nodes")
        self._title(2, "A service with prefill and decode as separate workers")
        self._spinney("apply", "-f", example("disaggregated"))
        self._show_start()
        self._title(3, "Answers: prefill runs the prompt, decode pulls its KV blocks and goes on")
        first = self._ask_disaggregated()
        self._title(4, "The same greedy answers from one worker that does both")
        self._compare(first)
        self._title(5, "A prefill worker is killed")
        self._kill_prefill()
        self._title(6, "A gang that fits nowhere")
        self._show_pending()
        seconds = self.session.clock.now() - began
        self._title(7, f"Done in {seconds:.0f} s; everything is stopped and removed")
        self._say(
            "Next: `spinney up`, `spinney apply -f examples/disaggregated/disaggregated.yaml`,\n"
            '`spinney status`, `spinney chat "What is a spinney?"`, `spinney down`.'
        )

    def clean_up(self) -> None:
        """Stop the cluster and remove its folder."""
        with contextlib.suppress(CommandError):
            self._spinney("down", "--delete-state", quiet=True)

    # Steps

    def _show_start(self) -> None:
        began = self.session.clock.now()
        self._say("Pods are created gated, placed all together into one rack, and start in order:")
        self.session.run(lambda client: _wait_ready(client, SERVICE, click.echo))
        waited = self.session.clock.now() - began
        self._say(f"All ready {waited:.1f} s after they were asked for.")
        self._spinney("get", "podgangs")
        self._spinney("get", "pods", "-o", "wide")

    def _ask_disaggregated(self) -> list[Answer]:
        answers = [self._ask(SERVICE, question, show=True) for question in QUESTIONS]
        if not any(a.headers.get("x-spinney-mode") == "disaggregated" for a in answers):
            raise CommandError("no answer was served by separate prefill and decode workers")
        return answers

    def _compare(self, disaggregated: list[Answer]) -> None:
        self._spinney("apply", "-f", example("aggregated"))
        self.session.run(lambda client: _wait_ready(client, "aggregated", lambda _line: None))
        rows = [["QUESTION", "SAME ANSWER", "TTFT APART / ONE", "ITL APART / ONE"]]
        for question, apart in zip(QUESTIONS, disaggregated, strict=True):
            one = self._ask("aggregated", question, show=False)
            rows.append(
                [
                    question,
                    "yes" if one.text == apart.text else "NO",
                    f"{apart.ttft_s * 1000:.0f} / {one.ttft_s * 1000:.0f} ms",
                    f"{apart.itl_s_p50 * 1000:.1f} / {one.itl_s_p50 * 1000:.1f} ms",
                ]
            )
        for line in columns(rows):
            click.echo(f"  {line}")
        if any(row[1] == "NO" for row in rows):
            raise CommandError("a disaggregated answer differs from that of one worker")
        self._spinney("delete", "-f", example("aggregated"))

    def _kill_prefill(self) -> None:
        victim = self.session.run(lambda client: _a_pod(client, "prefill"))
        self._spinney("delete", "pod", victim.name, "--force", "--no-wait")
        for question in QUESTIONS[:2]:
            self._ask(SERVICE, question, show=True)
        self.session.run(lambda client: _wait_replaced(client, victim))
        self._say(f"Both were answered, and {victim.name} has been replaced:")
        self._spinney("get", "pods")

    def _show_pending(self) -> None:
        self._spinney("apply", "-f", example("too-big"))
        message = self.session.run(_wait_refused)
        self._say(f"The scheduler placed none of it, and says why:\n  {message}")
        self._spinney("get", "pods", "-l", f"{PART_OF}=too-big")

    # Helpers of the steps

    def _ask(self, service: str, question: str, *, show: bool) -> Answer:
        async def work(client: KubeClient) -> Answer:
            url = endpoint(await find_front(client, service, "default"))
            messages = [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": question},
            ]
            body = {"model": "demo", "messages": messages, "max_tokens": 120, "temperature": 0}
            on_text: Callable[[str], None] = _print_piece if show else _print_nothing
            return await stream_chat(url, body, on_text)

        if show:
            click.secho(f"\n> {question}", bold=True)
        answer = self.session.run(work)
        if show:
            click.echo()
            for line in summary_lines(answer):
                click.secho(f"  {line}", dim=True)
        return answer

    def _spinney(self, *arguments: str, quiet: bool = False) -> None:
        if not quiet:
            click.secho(f"$ spinney {shlex.join(_shortened(arguments))}", fg="cyan")
        command = [sys.executable, "-m", "spinney.cmd.main", *arguments]
        done = subprocess.run(command, check=False, capture_output=quiet, timeout=READY_S * 2)
        if done.returncode:
            raise CommandError(f"`spinney {shlex.join(arguments)}` failed ({done.returncode})")

    def _title(self, number: int, text: str) -> None:
        click.secho(f"\n{number}. {text}", bold=True, fg="green")

    def _say(self, text: str) -> None:
        click.echo(text)


def example(name: str) -> str:
    """Return the path of the manifest that ships as example *name*."""
    inside = resources.files("spinney").joinpath("examples", name, f"{name}.yaml")
    if inside.is_file():
        return str(inside)
    return str(Path(__file__).parents[3] / "examples" / name / f"{name}.yaml")


def _shortened(arguments: tuple[str, ...]) -> list[str]:
    """Show an example's path as a user in the checkout would type it."""
    return [
        f"examples/{Path(a).parent.name}/{Path(a).name}" if a.endswith(".yaml") else a
        for a in arguments
    ]


def _print_piece(text: str) -> None:
    click.echo(text, nl=False)


def _print_nothing(_text: str) -> None:
    return


async def _until(what: str, probe: Callable[[], Awaitable[bool]]) -> None:
    try:
        async with asyncio.timeout(READY_S):
            while not await probe():  # noqa: ASYNC110  # The probe asks another process.
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise CommandError(f"{what} did not happen within {READY_S:g} s") from None


async def _wait_ready(client: KubeClient, service: str, tell: Callable[[str], None]) -> None:
    """Wait until all pods of *service* are ready; *tell* of each step that some pod takes."""
    seen: dict[str, str] = {}

    async def all_ready() -> bool:
        pods = (await client.list(Pod, "default", labels=f"{PART_OF}={service}")).items
        for pod in pods:
            stage = _stage(pod)
            if seen.get(pod.name) != stage:
                seen[pod.name] = stage
                tell(f"  {pod.name:32} {stage}")
        return bool(pods) and all(is_true(p.status.conditions, "Ready") for p in pods)

    await _until(f"readiness of all pods of {service!r}", all_ready)


def _stage(pod: Pod) -> str:
    if is_true(pod.status.conditions, "Ready"):
        return "ready"
    if pod.spec.scheduling_gates:
        return "gated: its gang is not complete"
    if not pod.spec.node_name:
        return "waits to be placed"
    if any(s.state.running for s in pod.status.init_container_statuses):
        return f"on {pod.spec.node_name}, waits for the roles it starts after"
    return f"on {pod.spec.node_name}, starting"


async def _a_pod(client: KubeClient, role: str) -> Pod:
    pods = (await client.list(Pod, "default", labels=f"{PART_OF}={SERVICE},{ROLE}={role}")).items
    return min(pods, key=lambda p: p.name)


async def _wait_replaced(client: KubeClient, victim: Pod) -> None:
    wanted = f"{PART_OF}={SERVICE},{ROLE}={victim.labels[ROLE]}"

    async def replaced() -> bool:
        pods = (await client.list(Pod, "default", labels=wanted)).items
        ready = [p for p in pods if is_true(p.status.conditions, "Ready")]
        return len(ready) == 2 and all(p.metadata.uid != victim.metadata.uid for p in pods)

    await _until(f"replacement of {victim.name}", replaced)


async def _wait_refused(client: KubeClient) -> str:
    message = ""

    async def refused() -> bool:
        nonlocal message
        for gang in (await client.list(PodGang, "default")).items:
            found = find_condition(gang.status.conditions, "Scheduled")
            if gang.name.startswith("too-big") and found and found.status == "False":
                message = found.message
        return bool(message)

    await _until("the scheduler's answer", refused)
    return message
