-- Made-up resolutions of conditions that nobody asks Goldsky for, and some (`ids`, outcome 1 won) that are asked for.
INSERT INTO ${table}
    (condition_id_norm, payout_numerators, payout_denominator, outcome_count, winning_outcome, winning_index,
     resolved_at, updated_at, source, version)
SELECT
    id, if(second, [0, 1], [1, 0]), 1, 2, if(second, 'No', 'Yes'), second,
    toDateTime('2025-01-01 00:00:00', 'UTC') + cityHash64(id) % 15552000, toDateTime('2025-11-01 00:00:00', 'UTC'),
    'demo', 1
FROM
(
    SELECT lower(hex(SHA256(concat('known', toString(number))))) AS id, cityHash64(number) % 100 < 78 AS second
    FROM numbers({known:UInt64})
    UNION ALL
    SELECT arrayJoin({ids:Array(String)}), true
)
