"""How the driver's errors become the ones that callers act upon."""

import pytest
from pymysql.err import IntegrityError, InterfaceError, InternalError, OperationalError, ProgrammingError

from meshkit.mysql_connection import session_problems
from meshkit.mysql_errors import (
    DatabaseError,
    DatabaseTimeout,
    DatabaseUnavailable,
    Deadlock,
    DuplicateKey,
    StatementRefused,
    constraint_of,
    is_server_answer,
    translate,
)

FIT = {
    "autocommit": "ON",
    "binlog_format": "MIXED",
    "log_bin": "OFF",
    "sql_mode": "STRICT_ALL_TABLES,NO_ZERO_DATE",
    "time_zone": "+00:00",
    "tx_isolation": "READ-COMMITTED",
}


@pytest.mark.parametrize(
    ("error", "becomes", "in_step"),
    [
        (IntegrityError(1062, "Duplicate entry '1' for key 'PRIMARY'"), DuplicateKey, True),
        (OperationalError(1213, "Deadlock found"), Deadlock, True),
        (OperationalError(1205, "Lock wait timeout exceeded"), Deadlock, True),
        (OperationalError(3024, "maximum statement execution time exceeded"), DatabaseTimeout, True),
        (ProgrammingError(1064, "syntax"), StatementRefused, True),
        (OperationalError(3819, "Check constraint"), StatementRefused, True),
        (OperationalError(1053, "shutdown"), DatabaseUnavailable, False),
        (OperationalError(1927, "killed"), DatabaseUnavailable, False),
        (OperationalError(1290, "read only"), DatabaseUnavailable, False),
        (OperationalError(2013, "Lost connection"), DatabaseUnavailable, False),
        (InterfaceError("(0, 'Not connected')"), DatabaseUnavailable, False),
        (InternalError("Packet sequence number wrong - got 3 expected 1"), DatabaseUnavailable, False),
        (ConnectionResetError("reset"), DatabaseUnavailable, False),
    ],
)
def test_each_driver_error_has_one_meaning(error: Exception, becomes: type[DatabaseError], in_step: bool) -> None:
    assert type(translate(error, "db")) is becomes
    assert is_server_answer(error) is in_step


@pytest.mark.parametrize(
    ("text", "constraint"),
    [
        ("Duplicate entry '63-00042' for key 'PRIMARY'", "PRIMARY"),
        ("Duplicate entry 'x' for key 'coupon_info.uk_code'", "uk_code"),
        ("Duplicate entry 'a' for key 'b.c' for key 'request_record.PRIMARY'", "PRIMARY"),
        ("something else", ""),
    ],
)
def test_the_constraint_is_read_from_the_end_of_either_servers_text(text: str, constraint: str) -> None:
    assert constraint_of(text) == constraint


def test_the_duplicate_value_is_not_repeated_in_the_error() -> None:
    error = translate(IntegrityError(1062, "Duplicate entry '13800138000' for key 'uk_phone'"), "db")
    assert "138" not in str(error)
    assert "uk_phone" in str(error)


def test_a_session_that_has_everything_has_no_problem() -> None:
    assert session_problems(FIT) == []
    assert session_problems({**FIT, "transaction_isolation": "READ-COMMITTED", "tx_isolation": "x"}) == []
    assert session_problems({**FIT, "log_bin": "ON", "binlog_format": "ROW"}) == []


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("tx_isolation", "REPEATABLE-READ", "isolation is REPEATABLE-READ"),
        ("transaction_isolation", "SERIALIZABLE", "isolation is SERIALIZABLE"),
        ("sql_mode", "NO_ZERO_DATE", "isn't strict"),
        ("sql_mode", "STRICT_ALL_TABLES,NO_BACKSLASH_ESCAPES", "NO_BACKSLASH_ESCAPES"),
        ("time_zone", "SYSTEM", "time_zone is SYSTEM"),
        ("autocommit", "OFF", "autocommit is off"),
        ("log_bin", "ON", "binlog_format is MIXED"),
    ],
)
def test_each_variable_that_is_wrong_is_named(variable: str, value: str, problem: str) -> None:
    (found,) = session_problems({**FIT, variable: value})
    assert problem in found
