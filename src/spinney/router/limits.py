"""Every bound of the router, by name: no wait, retry, queue or buffer is without one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines in seconds, sizes in bytes, counts as they are."""

    connect_timeout_s: float = 2.0
    """To a worker's port; a worker that does not accept by then is treated as gone."""
    prefill_deadline_s: float = 30.0
    """From sending a prompt to having the first token, besides the time its length earns it."""
    prefill_deadline_per_1k_tokens_s: float = 2.0
    """Added to `prefill_deadline_s` and `first_byte_deadline_s` for each 1,000 prompt tokens."""
    first_byte_deadline_s: float = 30.0
    """From asking a decode worker to the first byte of its stream."""
    response_deadline_s: float = 600.0
    """For a whole answer that is not streamed."""
    idle_stream_deadline_s: float = 60.0
    """Between two chunks of a stream: the worker's silence, or the client's refusal to read."""
    drain_deadline_s: float = 30.0
    """How long running requests may take to finish after SIGTERM."""
    probe_timeout_s: float = 2.0
    """For a worker's ``/v1/models``."""
    probe_period_s: float = 1.0
    """Between two questions to a worker whose models are not known."""

    max_running_per_worker: int = 2048
    """Requests for a model that are served at once, for each of its decode workers, at all routers
    together."""
    max_waiting: int = 4096
    """Requests for a model that wait for others to end; more are refused with 429."""
    queue_deadline_s: float = 30.0
    """How long a request waits for its turn."""
    tenant_shares: tuple[tuple[str, float], ...] = ()
    """How many parts of busy workers tenants have; those that are not here have one."""
    tenant_limits: tuple[tuple[str, int], ...] = ()
    """How many requests of tenants are served at once, at all routers together."""
    tenant_limit: int | None = None
    """The same for each tenant that is not in `tenant_limits`; None is any number."""
    ttft_target_ms: float | None = None
    """When first tokens are wanted of requests that do not say; None is at any time."""

    max_attempts: int = 5
    """Decode attempts of one request that reached a worker; in the last it prefills by itself."""
    share_every_s: float = 0.02
    """The shortest time between two messages in which one router tells another of its load."""
    peer_expiry_s: float = 2.0
    """A router that has said nothing for so long is counted no more."""
    settle_s: float = 0.06
    """When all other routers have heard what one told them: three messages' time."""
    max_tries: int = 8
    """Decode attempts of one request in all, those too that reached no worker; and how many workers
    may turn its stream away, once that has begun."""
    retry_within_s: float = 60.0
    """After a request came; then its next failure is its answer."""
    return_wait_s: float = 5.0
    """How long a request waits for a decode worker to come back, where all have failed lately."""
    suspect_after_s: float = 2.0
    """A worker's silence on all its streams after which it is asked whether it is alive."""
    alive_deadline_s: float = 3.0
    """How long it has to answer that; then what waits for it is given up."""
    max_prefill_attempts: int = 2
    """Prefill workers tried for each decode attempt; then the decode worker prefills."""
    max_migrations: int = 5
    """Workers that may go on with one stream, after its first worker broke off; 0 lets none. One
    that was not known to fail and turned the stream away has not gone on with it."""
    retry_ratio: float = 0.2
    """Retries per request that are sustained over time, all requests together."""
    retry_reserve: float = 20.0
    """Retries that may be made at once before `retry_ratio` binds."""
    avoid_first_s: float = 1.0
    """How long a worker is avoided after a failure; doubled for each further one."""
    avoid_most_s: float = 30.0
    """The most a worker is avoided."""

    avoid_answering_most_s: float = 2.0
    """The most that one is avoided which answers, while requests wait for one to come back."""
    max_request_bytes: int = 32 << 20
    """A larger request is refused with 413."""
    max_answer_bytes: int = 64 << 20
    """The most that is held of an answer that is not streamed."""
    max_event_bytes: int = 1 << 20
    """The most that is held of one event of a stream, while its end has not come."""
    max_stories: int = 1024
    """Recent requests whose decisions ``/debug/requests`` can tell."""
    max_steps_per_story: int = 64
    """Steps kept for one request."""
    max_chunks_per_worker: int = 16_384
    """Prompt chunks remembered for each worker, the least recently used forgotten first."""

    def prefill_deadline(self, prompt_tokens: int) -> float:
        """Return the seconds that a prompt of *prompt_tokens* may take in a prefill worker."""
        return self.prefill_deadline_s + self._earned(prompt_tokens)

    def first_byte_deadline(self, prompt_tokens: int) -> float:
        """Return the seconds until a decode worker must have sent something."""
        return self.first_byte_deadline_s + self._earned(prompt_tokens)

    def _earned(self, prompt_tokens: int) -> float:
        return self.prefill_deadline_per_1k_tokens_s * prompt_tokens / 1000
