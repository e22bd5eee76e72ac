"""What Prometheus is told of a service; the processes that compute say it by headers of their answers."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

STAGES = "server-timing"
"""Header of the milliseconds by stage, for browsers too (W3C Server Timing): "clip;dur=31.2, classify;dur=2.5"."""
CACHE = "x-s2clip-cache"
""" "hit" or "miss", then the cache of the process that answered: "hit; worker=0; bytes=1200; pictures=3; evicted=0"."""
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one HTTP process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("s2clip_requests", "Requests by status", ["status"], **own)
        self.seconds = Histogram(
            "s2clip_request_seconds", "From first byte to last", ["status"], buckets=SECONDS, **own
        )
        self.stages = Histogram("s2clip_stage_seconds", "By stage of computing", ["stage"], buckets=SECONDS, **own)
        self.queue = Gauge("s2clip_queue", "Requests that are read, wait or are computed", **own)
        self.lookups = Counter("s2clip_cache_lookups", "Pictures that were encoded before, or not", ["found"], **own)
        self.kept = Gauge("s2clip_cache_bytes", "Of encoded pictures", ["worker"], **own)
        self.pictures = Gauge("s2clip_cache_pictures", "Encoded pictures kept", ["worker"], **own)
        self.evicted = Gauge("s2clip_cache_evicted", "Encoded pictures that had to go, in all", ["worker"], **own)

    def answered(self, status: int, seconds: float, headers: dict[str, str]) -> None:
        """One request is over."""
        self.requests.labels(str(status)).inc()
        self.seconds.labels(str(status)).observe(seconds)
        for part in filter(None, headers.get(STAGES, "").split(", ")):
            stage, _, duration = part.partition(";dur=")
            self.stages.labels(stage).observe(float(duration) / 1000)
        if CACHE in headers:
            found, *facts = headers[CACHE].split("; ")
            self.lookups.labels(found).inc()
            said = dict(fact.split("=") for fact in facts)
            self.kept.labels(said["worker"]).set(int(said["bytes"]))
            self.pictures.labels(said["worker"]).set(int(said["pictures"]))
            self.evicted.labels(said["worker"]).set(int(said["evicted"]))
