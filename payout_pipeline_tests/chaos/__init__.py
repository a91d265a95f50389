"""The real backfill as processes that are killed, stopped and starved: shared by the chaos rounds and the reliability tests.

``processes``: commands as processes of their own; ``world``: a runtime directory, a faulty subgraph and a faulty ClickHouse
around them; ``rounds``: one seeded round of chaos from its plan to the oracle's verdict.
"""
