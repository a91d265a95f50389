-- Only rows of this pipeline's source, only by id.
DELETE FROM ${table} ${on_cluster}
WHERE source = {source:String} AND condition_id IN {ids:Array(String)}
