-- Only rows of this pipeline's source, only by id, however that is written.
DELETE FROM ${table} ${on_cluster}
WHERE source = {source:String} AND ${id} IN {ids:Array(String)}
