"""Machines of the cluster: a control machine with Dagster's daemon, and Celery workers that share no directory.

Each has a directory of its own as home, working and temporary directory, with the files of ``deploy/celery`` and a copy
of the ids in it. What they have in common is the installed package and the environment of
``deploy/celery/environment.example``, filled in with the services of the test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from payout_pipeline_tests.cluster.services import Service

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy/celery"
BIN = Path(sys.executable).parent
#: A run that a dead machine leaves behind is ended after this long here; after an hour in the deployment.
MAX_RUNTIME_SECONDS = 90


def cluster_environment(postgres: str, broker: str, given: Mapping[str, str]) -> dict[str, str]:
    """``environment.example`` with every value filled in from the services; ``given`` adds to it and wins."""
    text = (DEPLOY / "environment.example").read_text()
    values = dict(re.findall(r"^([A-Z][A-Z0-9_]*)=(.*)$", text, re.MULTILINE))
    parts = urlsplit(postgres)
    values |= {
        "DAGSTER_POSTGRES_HOST": parts.hostname or "",
        "DAGSTER_POSTGRES_PORT": str(parts.port),
        "DAGSTER_POSTGRES_DB": parts.path.lstrip("/"),
        "DAGSTER_POSTGRES_USER": parts.username or "",
        "DAGSTER_POSTGRES_PASSWORD": parts.password or "",
        "CELERY_BROKER_URL": broker,
        "CELERY_RESULT_BACKEND": broker,
        **given,
    }
    may_be_empty = ("PAYOUT_PNL_VIEW", "PAYOUT_ALERT_WEBHOOK")
    blank = [name for name, value in values.items() if not value and name not in may_be_empty]
    assert not blank, f"nothing given for {blank}"
    return values


@dataclass
class Machine:
    """A directory that stands for a machine, and the environment of its processes."""

    directory: Path
    env: dict[str, str]

    @classmethod
    def install(cls, directory: Path, environment: Mapping[str, str], ids: Path) -> Machine:
        """Set the machine up as docs/production.md says: home, input, environment."""
        home = directory / "home"
        for part in (home, directory / "input", directory / "tmp", directory / "user"):
            part.mkdir(parents=True)
        for name in ("workspace.yaml", "dagster_celery_config.py"):
            shutil.copy(DEPLOY / name, home / name)
        instance = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
        # Only the clocks are faster than in the deployment.
        instance["run_monitoring"] |= {"poll_interval_seconds": 5, "max_runtime_seconds": MAX_RUNTIME_SECONDS}
        (home / "dagster.yaml").write_text(yaml.safe_dump(instance))
        shutil.copy(ids, directory / "input/condition_ids_missing_api.txt")
        return cls(
            directory,
            {
                "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
                "LANG": "C.UTF-8",
                "PYTHONUNBUFFERED": "1",
                **environment,
                "HOME": str(directory / "user"),
                "TMPDIR": str(directory / "tmp"),
                "DAGSTER_HOME": str(home),
                "PYTHONPATH": str(home),
                "CONDITION_IDS_FILE": str(directory / "input/condition_ids_missing_api.txt"),
            },
        )

    def run(self, *command: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """A command on this machine, to its end."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.directory,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, name: str, *command: str) -> Service:
        """A long-running process on this machine; its output is in ``<name>.log`` there."""
        return Service(
            name, [BIN / command[0], *command[1:]], self.directory / f"{name}.log", env=self.env, cwd=self.directory
        )

    def start_celery(self, concurrency: int) -> Service:
        """A Celery worker as its unit file starts it, ready to take runs."""
        unit = (DEPLOY / "payout-celery-worker.service").read_text()
        line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
        command = line.partition("/bin/")[2].replace("%%h", self.directory.name).split()
        command[command.index("--concurrency") + 1] = str(concurrency)
        service = self.start("celery", *command)
        service.wait_until(lambda: " ready." in service.tail(100_000))
        return service

    def start_daemon(self) -> Service:
        """Dagster's daemon as its unit file starts it."""
        workspace = str(self.directory / "home/workspace.yaml")
        service = self.start("daemon", "dagster-daemon", "run", "--workspace", workspace)
        service.wait_until(lambda: "Launching run" in service.tail() or "daemon" in service.tail().lower())
        return service

    def launch_backfill(self, partitions: Sequence[str] | None = None) -> None:
        """Ask Dagster for the runs of the partitions (all unless named), as an operator does."""
        chosen = ["--all", "true"] if partitions is None else ["--partitions", ",".join(partitions)]
        workspace = str(self.directory / "home/workspace.yaml")
        done = self.run("dagster", "job", "backfill", "-w", workspace, "-j", "goldsky_backfill", "--noprompt", *chosen)
        assert done.returncode == 0, done.stdout + done.stderr

    def launch(self, job: str, tags: Mapping[str, str] | None = None) -> None:
        """Ask Dagster for one run of a job."""
        workspace = str(self.directory / "home/workspace.yaml")
        done = self.run("dagster", "job", "launch", "-w", workspace, "-j", job, "--tags", json.dumps(dict(tags or {})))
        assert done.returncode == 0, done.stdout + done.stderr


def texts_below(directory: Path) -> dict[str, str]:
    """Every file under a directory as text, for those who look for what must not be there."""
    return {str(path): path.read_text(errors="replace") for path in directory.rglob("*") if path.is_file()}


def objects_of(s3: Mapping[str, str], bucket: str, prefix: str = "") -> dict[str, bytes]:
    """Every object of a bucket."""
    import botocore.session

    client: Any = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=s3["AWS_ENDPOINT_URL"],
        region_name=s3["AWS_DEFAULT_REGION"],
        aws_access_key_id=s3["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=s3["AWS_SECRET_ACCESS_KEY"],
    )
    found: dict[str, bytes] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            found[entry["Key"]] = client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
    return found
