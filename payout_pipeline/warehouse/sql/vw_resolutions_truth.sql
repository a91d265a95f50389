-- One row per condition, the guide's six columns in its order, ids lower-case without 0x.
-- ${market_name} comes first; of the external rows those of conditions it does not have. Of several rows of one
-- condition in one table the first by the order below counts: goldsky-api, then the latest, then the source's name.
CREATE OR REPLACE VIEW ${view} ${on_cluster} AS
WITH
    known AS
    (
        SELECT
            ${market_id} AS condition_id,
            ${market_numerators} AS payout_numerators,
            ${market_denominator} AS payout_denominator,
            ${market_winning_index} AS winning_index,
            ${market_resolved_at} AS resolved_at,
            '${market_name}' AS source
        FROM ${market} AS m ${market_final}
        WHERE ${market_eligible}
        ORDER BY ${market_order}
        LIMIT 1 BY condition_id
    ),
    external AS
    (
        SELECT
            ${target_id} AS condition_id,
            ${target_numerators} AS payout_numerators,
            ${target_denominator} AS payout_denominator,
            ${target_winning_index} AS winning_index,
            ${target_resolved_at} AS resolved_at,
            toString(m.source) AS source
        FROM ${target} AS m ${target_final}
        WHERE ${target_eligible}
        ORDER BY ${target_order}
        LIMIT 1 BY condition_id
    )
SELECT condition_id, payout_numerators, payout_denominator, winning_index, resolved_at, source
FROM known
UNION ALL
SELECT condition_id, payout_numerators, payout_denominator, winning_index, resolved_at, source
FROM external
WHERE condition_id NOT IN (SELECT ${market_id} FROM ${market} AS m ${market_final} WHERE ${market_eligible})
