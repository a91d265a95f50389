"""The settings that each statement is sent with, as far as the user's profile lets him set them."""

from __future__ import annotations

import logging
import re
from typing import Any

from payout_pipeline.warehouse.faults import classify, is_expected

logger = logging.getLogger(__name__)

# Sent with every statement where the user may set them, so that a profile on the server cannot change what ours mean.
SESSION_SETTINGS: dict[str, Any] = {
    "async_insert": 0,  # an asynchronous insert is acknowledged before anything is written
    "join_use_nulls": 0,
    "mutations_sync": 2,
    "lightweight_deletes_sync": 2,
    "do_not_merge_across_partitions_select_final": 0,  # 1 returns a row changed across partitions twice
    "throw_on_max_partitions_per_insert_block": 0,
    "input_format_null_as_default": 1,
    "output_format_arrow_string_as_string": 1,
    "output_format_arrow_low_cardinality_as_dictionary": 0,
    "session_timezone": "UTC",
}
# What single statements send besides, with values like theirs.
_STATEMENT_SETTINGS: dict[str, Any] = {
    "insert_deduplication_token": "payout",
    "max_insert_block_size": 33_000,
    "select_sequential_consistency": 1,
    "log_comment": "payout-pipeline",
}
_REFUSED_SETTING = (164, 452)  # READONLY, SETTING_CONSTRAINT_VIOLATION


def settle(client: Any) -> None:
    """Give ``client`` the settings of each statement, without those that the user's profile does not let him change.

    Which these are is not said anywhere before they are sent: the server names one that it refuses, and the rest is
    tried again. What is refused is forgotten in ``client.server_settings``, so that no statement sends it.
    """
    definitions = client.server_settings
    wanted = {
        key: value
        for key, value in {**SESSION_SETTINGS, **_STATEMENT_SETTINGS}.items()
        if (known := definitions.get(key)) is not None and not known.readonly
    }
    while wanted:
        try:
            client.raw_query("SELECT 1", settings=wanted)
            break
        except Exception as error:
            fault = classify(error) if is_expected(error) else None
            refused = next((key for key in wanted if re.search(rf"\b{key}\b", str(error))), None)
            if fault is None or fault.code not in _REFUSED_SETTING or refused is None:
                raise
            logger.warning("ClickHouse does not let this user set %s; it is left as the profile has it", refused)
            del wanted[refused]
            del definitions[refused]
    for key, value in wanted.items():
        if key in SESSION_SETTINGS:
            client.set_client_setting(key, value)
