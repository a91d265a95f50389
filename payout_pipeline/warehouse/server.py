"""Where the ClickHouse server is, read from the settings as users write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from payout_pipeline.errors import ConfigurationError
from payout_pipeline.scrub import excerpt, register_secret

if TYPE_CHECKING:
    from payout_pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class Server:
    """Where a ClickHouse server is. ``password`` never leaves this object except into the client."""

    host: str
    port: int
    secure: bool
    user: str | None
    password: str
    database: str | None

    @property
    def address(self) -> str:
        """For messages, without credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Server({self.address})"


def server_of(settings: Settings) -> Server | None:
    """The server that the settings name, None in embedded mode.

    ``CLICKHOUSE_HOST`` is a host name or a URL such as ``https://host:8443``; the other variables win over its parts.
    Raises ConfigurationError where the two contradict each other, the URL is no URL, or a cluster is named without a host.
    """
    text = (settings.clickhouse_host or "").strip()
    if not text:
        if settings.clickhouse_cluster:
            raise ConfigurationError(
                "PAYOUT_CLICKHOUSE_CLUSTER is set without CLICKHOUSE_HOST: the embedded database is on no cluster.\n"
                "To repair it: set CLICKHOUSE_HOST to one host of the cluster, or unset PAYOUT_CLICKHOUSE_CLUSTER."
            )
        return None
    password = settings.clickhouse_password.get_secret_value() if settings.clickhouse_password else ""
    user, port, secure, host = settings.clickhouse_user, settings.clickhouse_port, settings.clickhouse_secure, text
    if "://" in text:
        try:
            parts = urlsplit(text)
            url_port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"CLICKHOUSE_HOST: not a URL: {excerpt(str(error))}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise ConfigurationError("CLICKHOUSE_HOST: expected a host name or http(s)://host:port, nothing behind it")
        if secure is not None and secure != (parts.scheme == "https"):
            raise ConfigurationError(
                f"CLICKHOUSE_HOST begins with {parts.scheme}:// but CLICKHOUSE_SECURE says {int(secure)}; drop one"
            )
        host, secure = parts.hostname, parts.scheme == "https"
        port = port or url_port
        user = user or (unquote(parts.username) if parts.username else None)
        password = password or (unquote(parts.password) if parts.password else "")
        register_secret(password)
    elif text.count(":") == 1:
        name, _, tail = text.partition(":")
        if not tail.isdigit() or not 0 < int(tail) < 65536 or not name:
            raise ConfigurationError("CLICKHOUSE_HOST: expected a host name, host:port or http(s)://host:port")
        if port is not None and port != int(tail):
            raise ConfigurationError(f"CLICKHOUSE_HOST names port {tail} but CLICKHOUSE_PORT says {port}; drop one")
        host, port = name, int(tail)
    if secure is None:
        secure = port in (443, 8443)
    return Server(
        host=host,
        port=port or (8443 if secure else 8123),
        secure=secure,
        user=user or ("default" if password else None),
        password=password,
        database=settings.clickhouse_database,
    )
