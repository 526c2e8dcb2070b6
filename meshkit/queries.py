"""Reads the named, described SQL statements of a package from its .sql file."""

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

_NAME = re.compile(r"--\s*name:\s*(?P<name>\S*)\s*$")
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")
# After "%(name)s" and "%%" are taken out, any "%" that is left would break the formatting at run time.
_PARAMETER = re.compile(r"%\([a-z][a-z0-9_]*\)s|%%")


class QueryFileError(Exception):
    """A .sql file that breaks the rules of named queries; the message names the file, the line and the rule."""


def load_queries(package: str, path: str = "sql/queries.sql") -> Mapping[str, str]:
    """Loads the statements of one .sql file.

    A block is `-- name: lock_coupons`, one or more `-- ` lines that describe it, then one statement with `%(name)s`
    parameters; a literal percent sign is written `%%`. Comment lines are not sent to the server.

    Args:
        package: The package that holds the file, for example "coupon_svc".
        path: The file's path inside the package.

    Returns:
        Statement text by query name, read-only.

    Raises:
        QueryFileError: A name is missing, malformed or used twice, or a query is undescribed, empty or malformed.
    """
    text = resources.files(package).joinpath(path).read_text(encoding="utf-8")
    return MappingProxyType(parse_queries(text, source=f"{package}/{path}"))


def parse_queries(text: str, *, source: str) -> dict[str, str]:
    """Parses the text of a .sql file; `source` names it in errors (see `load_queries`)."""
    blocks: dict[str, list[str]] = {}
    name = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = _NAME.match(line.strip())
        if header:
            name = header["name"]
            if not _IDENTIFIER.fullmatch(name):
                raise QueryFileError(f"{source}:{number}: {name!r} is no query name (want lower_snake_case)")
            if name in blocks:
                raise QueryFileError(f"{source}:{number}: query {name!r} is defined twice")
            blocks[name] = []
        elif name:
            blocks[name].append(line.rstrip())
        elif line.strip() and not line.lstrip().startswith("--"):
            raise QueryFileError(f"{source}:{number}: SQL stands before the first '-- name:' line")
    return {name: _statement(name, lines, source) for name, lines in blocks.items()}


def _statement(name: str, lines: list[str], source: str) -> str:
    comments = [line.strip().startswith("--") for line in lines]
    description = [line for line, comment in zip(lines, comments, strict=True) if comment]
    if not any(line.strip().strip("-").strip() for line in description):
        raise QueryFileError(f"{source}: query {name!r} has no description below its name")
    statement = [line for line, comment in zip(lines, comments, strict=True) if line and not comment]
    sql = "\n".join(statement).strip().removesuffix(";").rstrip()
    if not sql:
        raise QueryFileError(f"{source}: query {name!r} has no statement")
    if "%" in _PARAMETER.sub("", sql):
        raise QueryFileError(f"{source}: query {name!r} has a '%' that is neither %(name)s nor %%")
    return sql
