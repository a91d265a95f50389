"""The environment as a Dagster resource. Secrets arrive as ``EnvVar``, so the UI shows their names only."""

from __future__ import annotations

import os

import dagster as dg

from payout_pipeline.settings import Settings, load_settings


class PipelineResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Where the pipeline reads from and writes to.

    Every field overrides the variable of its name; all other settings come from the environment of the run.
    """

    goldsky_endpoint: str | None = None
    goldsky_api_token: str | None = None
    clickhouse_host: str | None = None
    clickhouse_user: str | None = None
    clickhouse_password: str | None = None
    limiter_url: str | None = None
    alert_webhook: str | None = None

    def settings(self) -> Settings:
        """The validated settings of this run; raises ConfigurationError naming every variable that is wrong."""
        fields = type(self).model_fields
        return load_settings(**{name: value for name in fields if (value := getattr(self, name)) is not None})


def pipeline_from_environment() -> PipelineResource:
    """The resource as it is deployed: each secret as a reference to its variable, where that is set."""

    def secret(variable: str) -> str | None:
        return dg.EnvVar(variable) if os.environ.get(variable) else None

    return PipelineResource(
        goldsky_endpoint=secret("GOLDSKY_ENDPOINT"),
        goldsky_api_token=secret("GOLDSKY_API_TOKEN"),
        clickhouse_host=secret("CLICKHOUSE_HOST"),
        clickhouse_user=secret("CLICKHOUSE_USER"),
        clickhouse_password=secret("CLICKHOUSE_PASSWORD"),
        limiter_url=secret("PAYOUT_LIMITER_URL"),
        alert_webhook=secret("PAYOUT_ALERT_WEBHOOK"),
    )
