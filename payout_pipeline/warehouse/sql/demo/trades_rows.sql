-- Three positions a condition; trade tables write ids with 0x.
INSERT INTO ${table}
SELECT
    concat('0x', lower(hex(substring(SHA256(toString(cityHash64(id, n) % 3000)), 1, 20)))) AS wallet,
    concat('0x', id) AS condition_id,
    cityHash64(id, n, 'outcome') % 2 AS outcome_index,
    1 + cityHash64(id, n, 'shares') % 500 AS shares_net,
    -round(shares_net * (5 + cityHash64(id, n, 'price') % 90) / 100, 2) AS cash_net,
    1 + cityHash64(id, n, 'trades') % 4 AS trades
FROM
(
    SELECT arrayJoin({ids:Array(String)}) AS id
    UNION ALL
    SELECT toString(condition_id_norm) FROM ${market} FINAL ORDER BY condition_id_norm LIMIT 500
) AS c
CROSS JOIN (SELECT number AS n FROM numbers(3)) AS p
