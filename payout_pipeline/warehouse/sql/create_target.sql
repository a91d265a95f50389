CREATE TABLE IF NOT EXISTS ${table} ${on_cluster}
(
    ${columns}
)
ENGINE = ${engine}(fetched_at)
ORDER BY condition_id
