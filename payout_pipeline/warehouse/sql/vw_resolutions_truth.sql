-- One row per condition, the guide's six columns in its order, ids lower-case without 0x.
-- ${market_name} comes first; of the external rows those of conditions it does not have.
-- Of several rows of one condition in one table one counts: its id written as above before 0x and upper case, then
-- goldsky-api before other sources, then the latest, then the source's name.
CREATE OR REPLACE VIEW ${view} ${on_cluster} AS
WITH
    known AS
    (
        ${market_side}
    ),
    external AS
    (
        ${target_side}
    )
SELECT condition_id, payout_numerators, payout_denominator, winning_index, resolved_at, source
FROM known
UNION ALL
SELECT condition_id, payout_numerators, payout_denominator, winning_index, resolved_at, source
FROM external
WHERE condition_id NOT IN (SELECT ${market_id} FROM ${market} AS m ${market_final} WHERE ${market_eligible})
