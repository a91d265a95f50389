"""A partition backfill as the UI launches it: through the webserver's GraphQL, carried out by the daemon."""

from __future__ import annotations

import pytest

from payout_pipeline.subgraph.server import SubgraphConfig, SubgraphServer
from payout_pipeline_tests.dagster_ui import dagster_dev
from payout_pipeline_tests.running import Place, as_counter, truth_of
from payout_pipeline_tests.test_end_to_end import REAL_BAR, split_unknown


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("schema", ["payouts", "numerators"])
def test_a_partition_backfill_from_the_ui_stores_all_real_vectors_and_builds_the_view_once(tmp_path, real_data, schema):
    truth = truth_of(real_data / "resolutions.csv")
    unresolved, _ = split_unknown(real_data, tmp_path)
    config = SubgraphConfig(conditions=real_data / "resolutions.csv", unresolved=unresolved, schema=schema)
    with SubgraphServer(config) as server:
        place = Place(tmp_path, server.url, real_data / "condition_ids.txt", REAL_BAR)
        with dagster_dev(tmp_path, place.environment) as ui:
            backfill = ui.backfill([f"worker_{n}_of_4" for n in range(1, 5)])
            assert ui.ended(backfill) == "COMPLETED_SUCCESS", ui.log.read_text()[-4000:]
            of_the_view = [run for run in ui.runs(backfill) if "vw_resolutions_truth" in run.assets]
            assert len(of_the_view) == 1
    assert place.stored() == as_counter(truth)
    assert sum(place.ledger_counts().values()) == 32_314
    assert place.run("report").returncode == 0
