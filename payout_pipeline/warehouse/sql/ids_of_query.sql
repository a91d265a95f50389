-- The first column of the user's query as text. The limits belong to this statement alone.
SELECT toValidUTF8(toString(${column})) AS id
FROM
(
    ${query}
)
${settings}
