-- Conditions that both sources resolve. Vectors agree where they are the same in lowest terms: [100,0]/100 is [1,0]/1.
WITH
    known AS
    (
        SELECT ${market_id} AS condition_id, ${market_numerators} AS numerators, ${market_denominator} AS denominator
        FROM ${market} AS m ${market_final}
        WHERE ${market_eligible}
        ORDER BY ${market_order}
        LIMIT 1 BY condition_id
    ),
    fetched AS
    (
        SELECT ${target_id} AS condition_id, ${target_numerators} AS numerators, ${target_denominator} AS denominator
        FROM ${target} AS m ${target_final}
        WHERE ${target_eligible} AND source = {source:String}
        ORDER BY ${target_order}
        LIMIT 1 BY condition_id
    )
SELECT
    count() AS overlap,
    countIf(differs) AS differing,
    arraySort(groupArrayIf(50)((id, market_vector, goldsky_vector), differs)) AS examples
FROM
(
    SELECT
        f.condition_id AS id,
        concat(toString(k.numerators), '/', toString(k.denominator)) AS market_vector,
        concat(toString(f.numerators), '/', toString(f.denominator)) AS goldsky_vector,
        length(k.numerators) != length(f.numerators)
            OR arrayExists(
                (a, b) -> toUInt128(a) * toUInt128(f.denominator) != toUInt128(b) * toUInt128(k.denominator),
                arrayResize(k.numerators, length(f.numerators)), f.numerators) AS differs
    FROM fetched AS f
    INNER JOIN known AS k ON k.condition_id = f.condition_id
)
