"""The data plane's front door: OpenAI's API over separate prefill and decode workers.

A request's way, by module:

    app            ASGI: routes, request ids, disconnects, draining
    gates          its turn among the others (admission decides)
    serving        from its turn to its end: choice, attempt, and again where that failed
      choosing     who serves it (picker and fleet decide)
      attempts     one attempt: one leg after the other, or both at once (rendezvous)
        prefill_leg, decode_leg   one stage of it; worker_call asks one worker (upstream)
        relay, migration          the stream to the client, and how another worker goes on with it
      retries      who is to blame for a failure, and whether another attempt follows
      replies      what the client is told where there is no answer
    run            what is known of it; recorder tells it to stories, spans and metrics

`workers.WorkerSource` says who there is: `pods.PodWorkers` from the Kubernetes API,
`workers.StaticWorkers` from a list. `assembly.assemble` puts it all together.
"""
