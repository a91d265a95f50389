-- What the target table holds of the ids in `fetched`, beside what was fetched; rows that agree are left out.
-- fetched: position, condition_id, status (1 resolved, 0 not resolved, 2 not known now), numerators, denominator,
-- winning_index, resolved_at (seconds, -1 unknown). Nothing is rounded: a stored value that is no whole number
-- becomes an empty vector, which equals nothing.
WITH stored AS
(
    SELECT
        id,
        ${own_rows} AS own_rows,
        ${other_rows} AS other_rows,
        ${newest_ms} AS newest_ms,
        ${ours} AS ours,
        ${theirs} AS theirs,
        ${other_source} AS other_source
    FROM
    (
        SELECT
            toString(condition_id) AS id,
            toString(source) AS source_name,
            source_name = {source:String} AS own,
            ${fetched_ms} AS fetched_ms,
            tuple(
                ${numerators},
                ${denominator},
                toInt64(winning_index),
                ${resolved_at},
                payout_numerators,
                payout_denominator
            ) AS stored_row
        FROM ${target} ${final}
        WHERE condition_id IN (SELECT condition_id FROM {fetched:Identifier}) ${only_own}
    )
    ${group_by}
)
SELECT
    f.position AS position,
    multiIf(
        f.status = 2, 'kept',
        f.status = 0 AND s.own_rows > 0, 'stale',
        f.status = 0, 'equal',
        s.own_rows = 0 AND s.other_rows = 0, 'missing',
        s.own_rows > 1, 'duplicated',
        s.own_rows = 1, if(
            s.ours.1 = f.numerators AND s.ours.2 = f.denominator
                AND s.ours.3 = toInt64(f.winning_index) AND s.ours.4 = f.resolved_at,
            'equal', 'different'),
        s.theirs.1 = f.numerators AND s.theirs.2 = f.denominator, 'held',
        'conflict') AS state,
    s.newest_ms AS newest_ms,
    s.own_rows AS own_rows,
    if(s.own_rows > 0,
        concat(toString(s.ours.5), '/', toString(s.ours.6)),
        concat(toString(s.theirs.5), '/', toString(s.theirs.6))) AS shown,
    s.other_source AS other_source
FROM {fetched:Identifier} AS f
LEFT JOIN stored AS s ON s.id = f.condition_id
WHERE state NOT IN ('equal', 'kept')
ORDER BY position
