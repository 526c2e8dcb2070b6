"""Names, order and splitting of migration files."""

import pytest

from meshkit.migrations import MigrationError, order_migrations, split_statements


def test_files_are_ordered_by_number_whatever_their_phase() -> None:
    texts = {"0010_pre_c.sql": "", "0002_post_b.sql": "", "0001_pre_a.sql": ""}
    found = order_migrations(texts, source="x")
    assert [(m.name, m.phase) for m in found] == [
        ("0001_pre_a.sql", "pre"),
        ("0002_post_b.sql", "post"),
        ("0010_pre_c.sql", "pre"),
    ]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([], "x has no migrations"),
        (["1_pre_a.sql"], "1_pre_a.sql is not named"),
        (["0001_a.sql"], "0001_a.sql is not named"),
        (["0001_pre_A.sql"], "0001_pre_A.sql is not named"),
        (["0001_pre_a.sql", "0001_post_b.sql"], "have the same number"),
    ],
)
def test_a_folder_that_breaks_the_naming_is_refused(names: list[str], problem: str) -> None:
    with pytest.raises(MigrationError, match=problem):
        order_migrations(dict.fromkeys(names, ""), source="x")


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("", []),
        (" ;; -- only a remark;\n", []),
        ("A;B", ["A", "B"]),
        ("A; B ;\n", ["A", "B"]),
        ("A 'x;y' ;B", ["A 'x;y'", "B"]),
        ("A 'it''s;' ;B", ["A 'it''s;'", "B"]),
        (r"A 'it\'s;\\' ;B", [r"A 'it\'s;\\'", "B"]),
        ('A "x;""" ;B', ['A "x;"""', "B"]),
        ("A `x;` ;B", ["A `x;`", "B"]),
        ("A -- it's; \n 1;B", ["A  \n 1", "B"]),
        ("A # it's;\n 1;B", ["A  \n 1", "B"]),
        ("A/* it's; \n */1;B", ["A 1", "B"]),
        ("A '-- x' '/*' '#';B", ["A '-- x' '/*' '#'", "B"]),
        ("A 1--1;B", ["A 1--1", "B"]),
        ("A /*! x;y */;B", ["A /*! x;y */", "B"]),
        ("A --", ["A"]),
    ],
)
def test_a_semicolon_ends_a_statement_unless_it_is_quoted_or_in_a_comment(text: str, statements: list[str]) -> None:
    assert list(split_statements(text)) == statements


@pytest.mark.parametrize("text", ["A;\nB 'x;", 'A;\n"', "A;\n`x", "A;\n/* x"])
def test_what_is_never_closed_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(MigrationError, match="in line 2 is never closed"):
        list(split_statements(text))
