"""How the pipeline's faults look to Dagster. Retry policies are here only.

Three layers could retry: a request inside the client, a step by its policy, a run by the daemon. Each fault is retried
by exactly one of them: requests and statements spend their own budgets below, so the step policy only repeats what is
marked ``retry_above``, and runs are never retried for a failed step (``dagster.yaml``).
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from payout_pipeline.errors import InterruptedRunError, PayoutPipelineError
from payout_pipeline.scrub import scrub

# For what is worth a fresh start of the whole step: a deployment that moved, a lock that will be free soon.
STEP_RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


class InterruptedStepError(dg.DagsterError, dg.DagsterExecutionInterruptedError):
    """The run was asked to end, and ends as cancelled.

    Dagster repeats an interrupted step by the step's retry policy; an error of its own it does not repeat, so this is
    both.
    """


@contextmanager
def reported_to_dagster() -> Iterator[None]:
    """Turn a fault of the pipeline into a ``dg.Failure`` that carries its message, without secrets, and its retry class.

    An unexpected error fails as well, with its traceback redacted: event storage is readable by every user of the UI.
    """
    try:
        yield
    except InterruptedRunError as interrupted:
        raise InterruptedStepError(scrub(str(interrupted))) from None
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
        raise InterruptedStepError("The step was interrupted; what it had finished is kept.") from None
    except PayoutPipelineError as fault:
        raise dg.Failure(
            description=scrub(str(fault)),
            metadata={"kind": type(fault).__name__},
            allow_retries=fault.retry_above,
        ) from None
    except (dg.Failure, dg.RetryRequested):
        raise
    except Exception as unexpected:  # noqa: BLE001 - fails the step all the same, without its secrets
        raise dg.Failure(
            description=scrub(f"{type(unexpected).__name__}: {unexpected}"),
            metadata={"traceback": dg.MetadataValue.md(f"```\n{scrub(traceback.format_exc())}\n```")},
            allow_retries=False,
        ) from None


def report_killed_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Report a run as failed whose process was killed: who has taken over its worker's lock knows that it is gone."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.add_run_tags(run_id, {"dagster/max_retries": "0"})  # its successor does its work
        instance.report_run_failed(
            run, message="The run's process was killed. A later run of the worker has taken over."
        )
