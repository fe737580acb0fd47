"""A histogram that takes a value many times against prometheus_client's, which takes it once."""

from __future__ import annotations

import random

import pytest

from pipeline.gateway.histogram import RepeatedHistogram

prometheus = pytest.importorskip("prometheus_client")


def test_it_counts_as_the_librarys_own_does() -> None:
    bounds = (0.001, 0.0025, 0.01, 1)
    ours, theirs = prometheus.CollectorRegistry(), prometheus.CollectorRegistry()
    repeated = RepeatedHistogram("wait_seconds", "How long", bounds)
    ours.register(repeated)
    single = prometheus.Histogram("wait_seconds", "How long", buckets=bounds, registry=theirs)
    dice = random.Random(5)
    for _ in range(200):
        value, times = dice.choice([*bounds, dice.random() / 100, 3.0]), dice.randrange(1, 9)
        repeated.observe(value, times)
        for _ in range(times):
            single.observe(value)
    names = [
        *(("wait_seconds_bucket", {"le": le}) for le in ("0.001", "0.0025", "0.01", "1.0", "+Inf")),
        ("wait_seconds_count", {}),
        ("wait_seconds_sum", {}),
    ]
    for name, labels in names:
        found = ours.get_sample_value(name, labels)
        assert found == pytest.approx(theirs.get_sample_value(name, labels)), (name, labels)
    written = prometheus.generate_latest(ours).decode().splitlines()
    wanted = prometheus.generate_latest(theirs).decode().splitlines()
    assert written[:3] == wanted[:3]  # what it is, and how a bound is written
