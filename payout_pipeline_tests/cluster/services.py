"""PostgreSQL, Redis and an S3 server as processes of their own, on free loopback ports, data in a temporary directory.

``tools/cluster_setup.sh`` installs what is missing. Every process is started in a session of its own and ended by it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

READY_SECONDS = 60.0


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    """Whether somebody listens on the port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Service:
    """A process with a log file. Ends with all that it has started."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name, self.log, self._stop_signal = name, log, stop_signal
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                user=user,
                group=user,
                start_new_session=True,
            )

    def wait_until(self, ready: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        """Wait for ``ready``; fails with the end of the log where the process ends or takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} was not ready after {seconds:g} s:\n{self.tail()}")
            time.sleep(0.1)

    def tail(self, characters: int = 4000) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-characters:]

    def signal_all(self, number: signal.Signals) -> None:
        """Send the signal to the process and to all that it has started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it and its children as a power cut would: nobody gets to say goodbye."""
        self.signal_all(signal.SIGKILL)
        self.process.wait(30)

    def stop(self, seconds: float = 20.0) -> None:
        """Ask it to end; kill what is left."""
        if self.process.poll() is None:
            self.process.send_signal(self._stop_signal)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        self.signal_all(signal.SIGKILL)
        self.process.wait(30)


def postgres_binary(name: str) -> Path | None:
    """The newest installed PostgreSQL program of that name (Debian keeps them off the PATH)."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parent.parent.name))
    if found:
        return found[-1]
    on_path = shutil.which(name)
    return Path(on_path) if on_path else None


def missing_parts() -> list[str]:
    """What of the cluster is not installed here."""
    wanted = {"redis-server": shutil.which("redis-server"), "postgres": postgres_binary("postgres")}
    missing = [name for name, found in wanted.items() if not found]
    for module in ("redis", "psycopg", "dagster_celery", "dagster_postgres", "s3fs", "moto"):
        try:
            __import__(module)
        except ImportError:
            missing.append(f"Python package {module}")
    return missing


@contextmanager
def redis_server(directory: Path) -> Iterator[tuple[Service, str]]:
    """A Redis with a password and no persistence; gives its URL."""
    directory.mkdir(parents=True, exist_ok=True)
    port, password = free_port(), secrets.token_hex(12)
    config = directory / "redis.conf"
    config.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\ndir {directory}\n')
    service = Service("redis", ["redis-server", config], directory / "redis.log")
    try:
        service.wait_until(lambda: accepts(port))
        yield service, f"redis://:{password}@127.0.0.1:{port}/0"
    finally:
        service.stop()


@contextmanager
def postgres_server(directory: Path, databases: Sequence[str]) -> Iterator[tuple[Service, dict[str, str]]]:
    """A PostgreSQL with password logins; gives a URL for each of ``databases``."""
    directory.mkdir(parents=True, exist_ok=True)
    initdb, postgres = postgres_binary("initdb"), postgres_binary("postgres")
    assert initdb is not None
    assert postgres is not None
    port, password = free_port(), secrets.token_hex(12)
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    password_file, data, sockets = directory / "password", directory / "data", directory / "sockets"
    password_file.write_text(password)
    data.mkdir()
    sockets.mkdir()
    if user is not None:
        for path in (directory, password_file, data, sockets):
            shutil.chown(path, user, user)
        for parent in directory.parents:  # pytest's directories are closed to others
            if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)
    subprocess.run(
        [initdb, "-D", data, "-U", "payout", "--auth=scram-sha-256", f"--pwfile={password_file}", "-E", "UTF8", "-N"],
        check=True,
        capture_output=True,
        user=user,
        group=user,
        cwd="/",
        timeout=120,
    )
    options = ["-c", "fsync=off", "-c", "max_connections=200", "-c", "listen_addresses=127.0.0.1"]
    service = Service(
        "postgres",
        [postgres, "-D", data, "-p", str(port), "-k", sockets, *options],
        directory / "postgres.log",
        user=user,
        cwd=Path("/"),
        stop_signal=signal.SIGINT,
    )
    try:
        import psycopg

        base = f"postgresql://payout:{password}@127.0.0.1:{port}"

        def ready() -> bool:
            try:
                psycopg.connect(f"{base}/postgres", connect_timeout=2).close()
            except psycopg.OperationalError:
                return False
            return True

        service.wait_until(ready)
        with psycopg.connect(f"{base}/postgres", autocommit=True) as connection:
            for database in databases:
                connection.execute(f'CREATE DATABASE "{database}"')
        yield service, {database: f"{base}/{database}" for database in databases}
    finally:
        service.stop()


@contextmanager
def s3_server(directory: Path, bucket: str) -> Iterator[tuple[Service, dict[str, str]]]:
    """moto's S3 with one bucket; gives the environment under which s3fs reaches it."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    service = Service(
        "s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], directory / "s3.log"
    )
    env = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "cluster",
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(12),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    try:
        service.wait_until(lambda: accepts(port))
        import botocore.session

        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            region_name=env["AWS_DEFAULT_REGION"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=bucket)
        yield service, env
    finally:
        service.stop()


if __name__ == "__main__":
    if missing := missing_parts():
        sys.exit(f"missing for the cluster's tests: {', '.join(missing)}")
