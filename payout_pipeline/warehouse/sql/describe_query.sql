-- Names and types of the columns of the user's query; nothing is read.
DESCRIBE TABLE
(
    ${query}
)
