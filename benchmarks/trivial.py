"""The least that Dagster can be asked to do, beside which the pipeline's own cost shows.

``trivial`` is one asset that does nothing; ``four``, ``loaded`` and ``view`` have the shape of the pipeline (four
partitions, two assets each, then one that is not partitioned) and do nothing either.
"""

from __future__ import annotations

import dagster as dg

PARTITIONS = dg.StaticPartitionsDefinition([f"worker_{n}_of_4" for n in range(1, 5)])


@dg.asset
def trivial() -> None:
    """Nothing."""


@dg.asset(partitions_def=PARTITIONS)
def four() -> None:
    """Nothing, a partition a worker."""


@dg.asset(partitions_def=PARTITIONS, deps=[four])
def loaded() -> None:
    """Nothing, after it."""


@dg.asset(deps=[loaded])
def view() -> None:
    """Nothing, once all partitions are in."""


defs = dg.Definitions(assets=[trivial, four, loaded, view], executor=dg.in_process_executor)
