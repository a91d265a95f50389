"""A run that was killed is reported as failed by the next run of its worker, which has taken over its lock."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import dagster as dg
import pytest

from payout_pipeline.ids.chunks import partition_key
from payout_pipeline.subgraph.generate import generate
from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.running import Place


@pytest.mark.slow
def test_b1_a_killed_run_is_reported_as_failed_by_the_next_run_of_its_worker(tmp_path: Path) -> None:
    data = generate(60, 5, tmp_path / "data")
    with SubgraphServer(SubgraphConfig(conditions=data.conditions, latency=3.0)) as server:
        place = Place(tmp_path, server.url, data.ids, {"PAYOUT_WORKERS": "1", "PAYOUT_PNL_VIEW": ""})
        killed = place.start("backfill")
        holder = place.runtime / "locks" / "worker_1_of_1.holder.json"
        while not holder.exists():
            time.sleep(0.1)
        os.kill(json.loads(holder.read_text())["pid"], signal.SIGKILL)
        killed.wait(60)
        server.configure(latency=0.0)
        with dg.DagsterInstance.from_config(str(place.home)) as instance:
            (run,) = instance.get_run_records()
            assert not run.dagster_run.is_finished
        done = place.materialize("goldsky_payouts,resolutions_external_ingest", partition_key(1, 1))
        assert done.returncode == 0, done.stdout
        with dg.DagsterInstance.from_config(str(place.home)) as instance:
            found = instance.get_run_by_id(run.dagster_run.run_id)
            assert found is not None
            assert found.status is dg.DagsterRunStatus.FAILURE
