"""The SQL of the warehouse lives in ``sql/*.sql``; this module reads it and puts identifiers and expressions in.

A statement carries ``${name}`` where an identifier or an expression that depends on the table's shape belongs. What
is put there is made by this package from allow-listed identifiers and fixed texts (:class:`Sql`), never from data:
values are bound parameters, ``{name:Type}``.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from string import Template

from payout_pipeline.warehouse.identifiers import QualifiedName, quote_identifier


class Sql(str):
    """A text that is part of a statement, made by this package."""

    __slots__ = ()


@cache
def _template(name: str) -> Template:
    text = (files("payout_pipeline.warehouse") / "sql" / f"{name}.sql").read_text(encoding="utf-8")
    return Template(text)


def statement(name: str, **parts: QualifiedName | Sql) -> str:
    """The statement of ``sql/<name>.sql`` with its ``${…}`` filled in; raises KeyError where one is not given."""
    texts: dict[str, str] = {}
    for key, part in parts.items():
        if not isinstance(part, QualifiedName | Sql):
            raise TypeError(f"{key}: only identifiers and fixed SQL go into a statement, got {type(part).__name__}")
        texts[key] = part.sql if isinstance(part, QualifiedName) else str(part)
    return _template(name).substitute(texts)


def column(name: str) -> Sql:
    """A column's name, checked and quoted."""
    return Sql(quote_identifier(name))
