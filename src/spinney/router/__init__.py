"""The data plane's front door: OpenAI's API over separate prefill and decode workers.

`app.RouterApp` is the ASGI application; `serving.Serving` carries one request through its
attempts; `picker.pick` decides, as a function of values, who serves it; `workers.WorkerSource` says
who there is: `pods.PodWorkers` from the Kubernetes API, `workers.StaticWorkers` from a list.
"""
