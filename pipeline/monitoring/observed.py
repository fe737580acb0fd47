"""What is watched: a deployment with its figures, limits and the names that scraping gives it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.manifests.measured import LOOK_EVERY_S
from pipeline.monitoring.alerts import Alert, alerts_of, numbers_of
from pipeline.monitoring.figures import Figures, figures_of
from pipeline.monitoring.queries import Query, Scope, Source, panel_scope, rule_scope
from pipeline.monitoring.table import TABLE
from pipeline.monitoring.thresholds import Thresholds, thresholds_of

if TYPE_CHECKING:
    from pipeline.manifests.deployed import Deployed

SHORT = 12
"""Digits of a digest that tell builds apart, for people and in labels."""
MOST_PER_LEAST = 4


@dataclass(frozen=True)
class Observed:
    """A deployment, as what watches it needs it.

    Attributes:
        deployed: What is deployed.
        figures: What its load test measured.
        limits: What was computed from that.
    """

    deployed: Deployed
    figures: Figures
    limits: Thresholds

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self.deployed.name

    @property
    def namespace(self) -> str | None:
        """Where it runs; None where kubectl or helm says it."""
        return self.deployed.values.namespace

    @property
    def digest(self) -> str:
        """The build's digest, short."""
        return self.deployed.build.digest[:SHORT]

    @property
    def least(self) -> int:
        """Replicas that there are always."""
        return self.deployed.values.autoscaling.min_replicas or self.deployed.values.replicas

    @property
    def most(self) -> int:
        """Replicas that there may be."""
        asked = self.deployed.values.autoscaling.max_replicas
        return max(self.least, asked or MOST_PER_LEAST * self.least)

    @property
    def price(self) -> float | None:
        """What a server costs for an hour; None where nobody said it."""
        asked = self.deployed.values.monitoring.price_per_hour
        return asked if asked is not None else self._cost("price_per_hour")

    @property
    def currency(self) -> str:
        """How prices are written."""
        return str(self.deployed.build.section("recipe", "cost").get("currency") or "USD")

    def _cost(self, key: str) -> float | None:
        found = self.deployed.build.section("recipe", "cost").get(key)
        return float(found) if isinstance(found, int | float) else None

    @cached_property
    def sources(self) -> frozenset[Source]:
        """Who publishes something where this build is served."""
        engine = Source.GPU if self.deployed.layout.gpus else Source.CPU
        return frozenset((Source.BOTH, Source.SCRAPE, Source.GATEWAY, Source.CLUSTER, engine))

    @property
    def _start_s(self) -> int:
        return self.deployed.measured.looks * LOOK_EVERY_S

    @cached_property
    def _numbers(self) -> dict[str, str]:
        return dict(numbers_of(self.limits, self.least, self.most))

    @property
    def rules(self) -> Scope:
        """The scope of its rules."""
        return rule_scope(self.name, self.namespace, self._numbers)

    @property
    def panels(self) -> Scope:
        """The scope of its dashboard."""
        return panel_scope(self.name, self._numbers)

    @property
    def queries(self) -> dict[str, Query]:
        """The queries of the table that something answers there."""
        return {name: query for name, query in TABLE.items() if query.source in self.sources}

    @property
    def alerts(self) -> list[tuple[Alert, str]]:
        """Its alerts, each with its expression."""
        found = [
            (alert, alert.expr(self.sources)) for alert in alerts_of(self.limits, self._start_s)
        ]
        return [(alert, self.rules.fill(expr)) for alert, expr in found if expr]


def observe(deployed: Deployed) -> Observed:
    """Reads the figures of a deployment's build and computes its limits.

    Args:
        deployed: What is deployed.

    Raises:
        UnsupportedError: Its build has no report or no load test.
        UsageError: The load test that was named is none.
    """
    chosen = deployed.values.monitoring
    figures = figures_of(deployed.build, Path(chosen.load_test) if chosen.load_test else None)
    limits = thresholds_of(figures, chosen.time_to_first_token_ms, chosen.time_per_output_token_ms)
    return Observed(deployed, figures, limits)
