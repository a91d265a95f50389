"""The faults of the pipeline, told apart by what may be done about them.

Every message says what failed, where, the measured value, the limit and the command that repairs it. Nothing here
imports Dagster: the thin outer layer turns :class:`PermanentError` into a failure that no retry policy repeats.
"""

from __future__ import annotations


class PayoutPipelineError(Exception):
    """Base of all expected faults; shown to users without a traceback. ``exit_code`` is that of the command line."""

    exit_code = 1
    #: Whether a fresh start of the whole step may help. What was already retried below is not retried above.
    retry_above = False


def head_and_repair(message: str) -> tuple[str, str]:
    """The first line of a fault's message, and the rest in one line: what to do about it."""
    head, _, rest = message.partition("\n")
    return head, " ".join(rest.split()).removeprefix("To repair it: ")


class PermanentError(PayoutPipelineError):
    """Permanent: a retry cannot help before something is changed."""


class TransientError(PayoutPipelineError):
    """The same thing may succeed later; what was finished is kept."""


class ConfigurationError(PermanentError):
    """The environment, the command line or the input file is wrong; nothing was fetched or written."""

    exit_code = 2


class InputError(ConfigurationError):
    """The file of condition ids cannot be used; the message lists the offending line numbers."""


class GoldskyPermanentError(PermanentError):
    """The subgraph answered in a way that no retry changes (wrong endpoint, wrong schema, refused query)."""


class GoldskyUnavailableError(TransientError):
    """The subgraph did not answer within the retries and the outage budget."""


class SnapshotLostError(TransientError):
    """The pinned block or the deployment is gone: the whole worker's run has to be pinned anew."""

    retry_above = True


class WarehouseSchemaError(ConfigurationError):
    """An existing table cannot hold the vectors exactly; the message carries the DDL that is needed."""

    exit_code = 1


class WarehousePermanentError(PermanentError):
    """ClickHouse refused permanently: no grant, wrong password, bad statement. Names code and table."""


class WarehouseUnavailableError(TransientError):
    """ClickHouse did not answer within its waiting budget; nothing was recorded as stored."""


class IncompleteError(PermanentError):
    """Something that has to be complete is not: a worker is missing, an id unaccounted for, a row not stored."""


class ErrorRateError(TransientError):
    """More ids of a chunk failed than ``PAYOUT_MAX_ERROR_RATE`` allows; what was answered is saved."""


class LedgerError(PermanentError):
    """The ledger on disk cannot be used as it is."""


class StorageError(TransientError):
    """A file under the runtime directory cannot be written (full, read-only, missing); names path and need."""


class LockHeldError(TransientError):
    """The lock is held by another process, which the message names."""

    retry_above = True


class InterruptedRunError(PayoutPipelineError):
    """SIGINT or SIGTERM ended the run; finished batches are kept. ``exit_code`` is 128 + the signal number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
