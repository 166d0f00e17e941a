"""What Prometheus is told of a server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from experiments.serving.engine import Engine

_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


class Metrics:
    """The metrics of one engine."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        every = {"registry": self._registry}
        self.requests = Counter("o3jax_requests", "Chat requests by HTTP status", ["status"], **every)
        self.seconds = Histogram("o3jax_request_seconds", "From request to reply", buckets=_SECONDS, **every)
        self.first = Histogram("o3jax_first_token_seconds", "To the first text", buckets=_SECONDS, **every)
        for name, text, read in (
            ("o3jax_waiting", "Requests that wait", lambda: engine.waiting),
            ("o3jax_running", "Requests that are worked on", lambda: engine.running),
            ("o3jax_generated_tokens", "Tokens generated so far", lambda: engine.decoder.tokens),
        ):
            Gauge(name, text, **every).set_function(read)

    def text(self) -> bytes:
        """Returns the exposition."""
        return generate_latest(self._registry)
