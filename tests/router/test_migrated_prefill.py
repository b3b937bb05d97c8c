"""Who computes the prompt of a stream that goes on: prompt and sent tokens count alike."""

from __future__ import annotations

import asyncio
from functools import partial

from tests.kv.test_prefix_index import named, stored
from tests.router.fake_workers import PATIENT, fleet, in_turn, until, words
from tests.router.test_router_cache import Feeds

ASKED = {"max_tokens": 6, "stream": True}


def all_have(found, want):
    return found() == want


def test_a_prefill_worker_that_has_what_was_sent_too_is_the_one_that_goes_on():
    async def main():
        feeds = Feeds()
        async with fleet("p p p d d d", parts={"subscribe": feeds.follow}, **PATIENT) as world:
            for worker in world.decode:
                worker.fault_at = 3
            for number in range(6):
                prompt = [1000 * (number + 1) + at for at in range(10)]
                sent = [*prompt, 100, 101, 102]
                for name, blocks in (("p0", 2), ("p1", 2), ("p2", 3)):
                    known = tuple(sent[: 4 * blocks])
                    await feeds.say(name, stored(known, 4, named(f"{name}-{number}")))
                found = partial(world.router.blocks.cached_tokens, sent)
                await until(partial(all_have, found, {"p0": 8, "p1": 8, "p2": 12}), "the events")
                in_turn(world.decode, "die-mid-stream")
                body = ASKED | {"prompt": prompt}
                said = await world.ask(body, headers={"x-request-id": f"r{number}"})
                assert said.text == "".join(words(body))
                story = (await world.get(f"/debug/requests/r{number}")).json
                (step,) = [each for each in story["steps"] if each["what"] == "migrated"]
                assert step["fields"]["tokens_sent"] == 3
                assert step["fields"]["prefill_worker"] == "p2", number

    asyncio.run(main())


def test_the_last_worker_that_may_go_on_computes_the_prompt_itself():
    async def main():
        async with fleet("p d d d d", max_migrations=2, **PATIENT) as world:
            for worker in world.workers.values():
                worker.resumes = False
            for worker in world.decode:
                worker.fault = "die-mid-stream"
            said = await world.ask(ASKED | {"prompt": "Once"}, headers={"x-request-id": "r"})
            assert said.events[-1]["error"]["code"] == "worker_failed"
            asked = {seen.id: seen.body for worker in world.decode for seen in worker.seen}
            fetched = {name: "kv_transfer_params" in body for name, body in asked.items()}
            assert fetched == {"r": True, "r.2": True, "r.3": False}
            assert [seen.id for seen in world.prefill[0].seen] == ["r", "r.2"]

    asyncio.run(main())
