-- What the target holds of the ids in `fetched`, beside what was fetched; rows that agree are left out.
-- fetched: position, condition_id, status (1 resolved, 0 unresolved or absent, 2 without an answer that counts), numerators,
-- denominator, winning_index, resolved_at (seconds, -1 unknown). Ids are compared in normal form; `own` are rows of this
-- pipeline written so, `theirs` rows of other sources that are vectors at all.
WITH stored AS
(
    SELECT
        id,
        countIf(own) AS own_rows,
        countIf(of_source) AS rows_of_source,
        countIf(theirs) AS other_vectors,
        max(fetched_ms) AS newest_ms,
        maxOrNullIf(row_version, normal) AS version,
        anyIf(stored_row, own) AS ours,
        anyIf(stored_row, theirs) AS other
    FROM
    (
        SELECT
            ${id} AS id,
            toString(m.condition_id) = id AS normal,
            toString(m.source) = {source:String} AS of_source,
            of_source AND normal AS own,
            NOT of_source AND normal AND m.payout_denominator > 0 AND arrayExists(x -> x > 0, m.payout_numerators) AS theirs,
            ${fetched_ms} AS fetched_ms,
            ${version} AS row_version,
            tuple(
                arrayMap(x -> toInt256(x), m.payout_numerators),
                toInt256(m.payout_denominator),
                toInt64(m.winning_index),
                ${resolved_at}
            ) AS stored_row
        FROM ${target} AS m FINAL
        WHERE ${id} IN (SELECT condition_id FROM {fetched:Identifier})
    )
    GROUP BY id
)
SELECT
    f.position AS position,
    multiIf(
        f.status = 2, if(s.rows_of_source > 0, 'kept', 'equal'),
        f.status = 0, if(s.rows_of_source > 0, 'stale', 'equal'),
        s.own_rows > 0, if(
            s.ours.1 = arrayMap(x -> toInt256(x), f.numerators) AND s.ours.2 = toInt256(f.denominator)
                AND s.ours.3 = toInt64(f.winning_index) AND s.ours.4 = f.resolved_at,
            'equal', 'different'),
        NOT ${exclusive} OR s.other_vectors = 0, 'missing',
        length(s.other.1) = length(f.numerators) AND arrayAll(
            (a, b) -> a * toInt256(f.denominator) = toInt256(b) * s.other.2,
            arrayResize(s.other.1, length(f.numerators)), f.numerators), 'held',
        'conflict') AS state,
    s.newest_ms AS newest_ms,
    s.version AS version
FROM {fetched:Identifier} AS f
LEFT JOIN stored AS s ON s.id = f.condition_id
WHERE state != 'equal'
ORDER BY position
${consistency}
