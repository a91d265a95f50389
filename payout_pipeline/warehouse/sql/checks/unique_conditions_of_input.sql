-- Of the ids in `asked` (a part of today's input): how many have a row of goldsky-api.
SELECT uniqExact(${id}) AS conditions
FROM ${target} AS m ${final}
WHERE m.source = {source:String} AND ${id} IN (SELECT condition_id FROM {asked:Identifier})
