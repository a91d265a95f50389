"""The environment of the pipeline, read and validated once.

Every variable of the contract is a field here. :func:`load_settings` names all wrong, empty and unknown variables in
one :class:`~payout_pipeline.errors.ConfigurationError`, before anything is fetched or written. ``.env`` in the current
directory is read; the real environment wins over it.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.scrub import excerpt, register_secret
from payout_pipeline.warehouse.identifiers import QualifiedName, quote_identifier

PUBLIC_ENDPOINT = (
    "https://api.goldsky.com/api/public/project_cl6mb8i9h0003e201j6li0diw/subgraphs/positions-subgraph/0.0.7/gn"
)
# The guide's bar: 120,000 of its 170,448 ids.
GUIDE_SHARE = Fraction(120_000, 170_448)
MAX_WORKERS = 99
MAX_BATCH_SIZE = 1000  # graph-node's own limit of `first`
_SHORTEST_PART = 12  # a shorter part of a webhook's URL, such as /hook, is no credential and occurs elsewhere


class RateLimit(BaseModel):
    """``requests`` in any window of ``seconds``; written as ``50/10s``."""

    model_config = ConfigDict(frozen=True)
    requests: int = Field(ge=1, le=1_000_000)
    seconds: float = Field(gt=0, le=86_400)

    @classmethod
    def parse(cls, text: str) -> RateLimit:
        """``50/10s``, ``5/s``, ``300/1m``; raises ValueError naming the form."""
        match = re.fullmatch(r"\s*(\d{1,7})\s*/\s*(\d+(?:\.\d+)?)?\s*(ms|s|min|m|h)?\s*", text, re.ASCII)
        if match is None or (match[2] is None and match[3] is None):
            raise ValueError(f"expected requests/window such as 50/10s, got {text!r}")
        units = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
        requests, seconds = int(match[1]), float(match[2] or 1) * units[match[3] or "s"]
        if requests < 1 or not 0 < seconds <= 86_400:
            raise ValueError(f"requests must be at least 1 and the window between 1ms and 24h, got {text!r}")
        return cls(requests=requests, seconds=seconds)

    def __str__(self) -> str:
        return f"{self.requests}/{self.seconds:g}s"


def _rate_limit(value: Any) -> Any:
    return RateLimit.parse(value) if isinstance(value, str) else value


def _whole_number(value: Any) -> Any:
    """Only plain digits: ``1e3``, ``4.0`` and ``true`` are refused instead of being guessed at."""
    if isinstance(value, (bool, float)):
        raise ValueError("expected a whole number")
    if isinstance(value, str):
        if not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", value):
            raise ValueError("expected a whole number")
        return int(value)
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError("expected a number") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def _success_bar(value: Any) -> Any:
    """A share (``0.7``, ``120000/170448``) or, from 1 on, a count of distinct conditions."""
    if isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?(/[0-9]{1,12})?", text):
            raise ValueError("expected a share such as 0.7 or 120000/170448, or a count such as 120000")
        head, _, tail = text.partition("/")
        if tail and int(tail) == 0:
            raise ValueError("the share divides by zero")
        value = Fraction(head) / Fraction(tail or 1)
    bar = Fraction(value)
    if bar < 0:
        raise ValueError("must not be negative")
    if bar >= 1 and bar.denominator != 1:
        raise ValueError("from 1 on it is a count and has to be a whole number")
    return bar


def _qualified(value: Any) -> Any:
    QualifiedName.parse(value)
    return value.strip()


def _text_of_query(value: str) -> str:
    """The query itself; of a path of a ``.sql`` file its content."""
    text = value.strip()
    if re.fullmatch(r"\S.*\.sql", text):
        try:
            text = Path(text).read_text(encoding="utf-8-sig").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise ValueError(f"{excerpt(text, 200)}: {reason} (looked from {Path.cwd()})") from None
        if not text:
            raise ValueError("the file is empty; it has to hold a SELECT whose first column is the ids")
    return text


def _identifier(value: Any) -> Any:
    if value is not None:
        quote_identifier(value)
    return value


Whole = Annotated[int, BeforeValidator(_whole_number)]
Finite = Annotated[float, BeforeValidator(_finite)]
TableName = Annotated[str, BeforeValidator(_qualified)]


class Settings(BaseModel):
    """All settings, one field a variable; :data:`VARIABLES` has the names."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)

    condition_ids_file: Path = Path("reports/condition_ids_missing_api.txt")
    condition_ids_query: str | None = None
    workers: Whole = Field(4, ge=1, le=MAX_WORKERS)
    runtime_dir: str = Field("runtime", min_length=1)
    checkpoint_interval: Whole = Field(10, ge=1, le=1_000_000)
    max_error_rate: Finite = Field(0.01, ge=0, le=1)
    min_unique_conditions: Annotated[Fraction, BeforeValidator(_success_bar)] = GUIDE_SHARE

    goldsky_endpoint: str = PUBLIC_ENDPOINT
    goldsky_api_token: SecretStr | None = None
    goldsky_batch_size: Whole = Field(1000, ge=1, le=MAX_BATCH_SIZE)
    goldsky_batches_per_request: Whole = Field(10, ge=1, le=100)
    goldsky_concurrent_requests: Whole = Field(8, ge=1, le=256)
    goldsky_rate_limit: Annotated[RateLimit, BeforeValidator(_rate_limit)] = RateLimit(requests=50, seconds=10)
    goldsky_max_retries: Whole = Field(3, ge=0, le=100)
    goldsky_timeout_seconds: Finite = Field(60, gt=0, le=3600)
    goldsky_block_margin: Whole = Field(250, ge=0, le=100_000_000)
    goldsky_max_retry_after_seconds: Finite = Field(60, gt=0, le=3600)
    goldsky_outage_budget_seconds: Finite = Field(900, ge=0, le=86_400)
    goldsky_mode: Literal["list", "scan"] = "list"

    clickhouse_host: str | None = None
    clickhouse_port: Annotated[int | None, BeforeValidator(_whole_number)] = Field(None, ge=1, le=65_535)
    clickhouse_user: str | None = None
    clickhouse_password: SecretStr | None = None
    clickhouse_database: Annotated[str | None, BeforeValidator(_identifier)] = None
    clickhouse_secure: bool | None = None
    clickhouse_wait_seconds: Finite = Field(120, ge=0, le=86_400)
    clickhouse_cluster: str | None = Field(None, pattern=r"^([A-Za-z_][A-Za-z0-9_.-]*|\{[A-Za-z_]+\})$")

    target_table: TableName = "default.resolutions_external_ingest"
    truth_view: TableName = "cascadian_clean.vw_resolutions_truth"
    market_resolutions_table: TableName = "default.market_resolutions_final"
    pnl_view: str = "cascadian_clean.vw_wallet_pnl_settled"

    limiter_url: SecretStr | None = None
    alert_webhook: SecretStr | None = None
    debug: bool = False

    @field_validator("condition_ids_query")
    @classmethod
    def _condition_ids_query(cls, value: str | None) -> str | None:
        return None if value is None else _text_of_query(value)

    @field_validator("goldsky_endpoint")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an http(s) URL of a subgraph")
        if parts.username or parts.password:
            raise ValueError("credentials do not belong into the URL; use GOLDSKY_API_TOKEN")
        _ = parts.port  # raises ValueError on a port that is no number
        return value

    @field_validator("pnl_view")
    @classmethod
    def _pnl_view(cls, value: str) -> str:
        return _qualified(value) if value.strip() else ""

    @field_validator("limiter_url")
    @classmethod
    def _limiter_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and urlsplit(value.get_secret_value()).scheme not in (
            "redis",
            "rediss",
            "postgresql",
            "postgres",
        ):
            raise ValueError("expected a redis:// or postgresql:// URL")
        return value

    @model_validator(mode="after")
    def _one_source_of_ids(self) -> Settings:
        if self.condition_ids_query is not None:
            if "condition_ids_file" in self.model_fields_set:
                raise ValueError("CONDITION_IDS_FILE and CONDITION_IDS_QUERY are both set; unset one of them")
            if self.goldsky_mode == "scan":
                raise ValueError("CONDITION_IDS_QUERY is set, but GOLDSKY_MODE=scan asks for no ids; unset one of them")
        return self

    @field_validator("alert_webhook")
    @classmethod
    def _alert_webhook(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = value.get_secret_value().strip()  # a secret from a file often ends with a newline
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # whose message would show a part of the URL
            usable = False
        if not usable:
            raise ValueError("expected an http(s) URL that takes JSON, such as one of Slack's incoming webhooks")
        return SecretStr(url)

    def model_post_init(self, _context: Any) -> None:
        """Register the secrets, so that nothing that is printed from now on can carry them."""
        for secret in (self.goldsky_api_token, self.clickhouse_password, self.limiter_url):
            if secret is not None:
                register_secret(secret.get_secret_value())
        if self.limiter_url is not None:
            register_secret(urlsplit(self.limiter_url.get_secret_value()).password)
        if self.alert_webhook is not None:
            self._register_webhook(self.alert_webhook.get_secret_value())
        if self.clickhouse_host and "://" in self.clickhouse_host:
            register_secret(urlsplit(self.clickhouse_host).password)

    @staticmethod
    def _register_webhook(url: str) -> None:
        """All of the URL is a credential: with Slack the path alone is, which a server may echo."""
        parts = urlsplit(url)
        register_secret(url)
        register_secret(parts.password)
        for part in (parts.path, parts.path.rpartition("/")[2], parts.query):
            if len(part) >= _SHORTEST_PART:
                register_secret(part)

    @property
    def embedded(self) -> bool:
        """Whether ClickHouse is the engine in this process (chDB) instead of a server."""
        return not self.clickhouse_host

    def success_bar(self, ids: int) -> int:
        """How many distinct conditions ``PAYOUT_MIN_UNIQUE_CONDITIONS`` asks for, of ``ids`` input ids (rounded up)."""
        bar = self.min_unique_conditions
        return math.ceil(bar * ids) if bar < 1 else int(bar)


def _variable(field: str) -> str:
    of_its_own = (
        field.startswith(("condition_ids_", "goldsky_", "clickhouse_", "debug")) and field != "clickhouse_cluster"
    )
    return field.upper() if of_its_own else f"PAYOUT_{field}".upper()


# Field → variable.
VARIABLES: dict[str, str] = {field: _variable(field) for field in Settings.model_fields}
# Names that mean something when they are set to nothing.
_MAY_BE_EMPTY = {"PAYOUT_PNL_VIEW"}
# Left empty these are as good as unset: `.env` templates and container platforms write them so. Elsewhere it is a mistake.
_EMPTY_IS_UNSET = {
    VARIABLES[name] for name, field in Settings.model_fields.items() if field.default is None or field.default is False
}
_OWN_PREFIXES = ("PAYOUT_", "GOLDSKY_")


def environment(dotenv: Path | None = None) -> dict[str, str]:
    """The variables in force: ``.env`` (of the current directory unless given), overlaid by the real environment."""
    from dotenv import dotenv_values

    path = Path(".env") if dotenv is None else dotenv
    values = {k: v for k, v in dotenv_values(path).items() if v is not None} if path.is_file() else {}
    return {**values, **os.environ}


def load_settings(env: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read and validate the environment.

    ``env`` replaces :func:`environment` (for tests and the demo); ``overrides`` are field values that win over it.
    Raises ConfigurationError listing **every** wrong, empty or unknown variable at once.
    """
    env = environment() if env is None else env
    known = {variable: field for field, variable in VARIABLES.items()}
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name in sorted(env):
        if name not in known:
            if name.upper().startswith(_OWN_PREFIXES):
                near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.6)
                hint = f"; did you mean {near[0]}?" if near else ""
                problems.append(f"{name}: not a variable of this pipeline{hint}")
            continue
        text = env[name]
        if not text.strip() and name in _EMPTY_IS_UNSET:
            continue
        if not text.strip() and name not in _MAY_BE_EMPTY:
            problems.append(f"{name}: is empty; unset it to use its default, or give it a value")
            continue
        field = known[name]
        if field not in overrides:
            values[field] = text
    try:
        settings = Settings(**{**values, **overrides})
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            field = str(detail["loc"][0]) if detail["loc"] else "settings"
            shown = values.get(field)
            secret = field in (
                "condition_ids_query",
                "goldsky_api_token",
                "clickhouse_password",
                "limiter_url",
                "alert_webhook",
                "clickhouse_host",
            )
            got = f" (got {excerpt(str(shown), 80)!r})" if shown is not None and not secret else ""
            message = detail["msg"].removeprefix("Value error, ")
            problems.append(f"{VARIABLES.get(field, field)}: {message}{got}")
        settings = None
    if problems or settings is None:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigurationError(
            f"{len(problems)} setting(s) cannot be used; nothing was fetched or written.\n{listed}\n"
            "Correct them in the environment or in .env; the README lists every variable with its default."
        )
    return settings
