SELECT engine, engine_full, sorting_key, partition_key
FROM system.tables
WHERE database = {database:String} AND name = {name:String}
