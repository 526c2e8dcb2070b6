"""Turns what the MySQL driver raises into the few errors that callers act upon."""

import pymysql.err

# Codes below 2000 are the server's, from 2000 on the client library's.
_DUPLICATE_KEY = frozenset({1062, 1586})
_DEADLOCK = frozenset({1205, 1213})
_TIMEOUT = frozenset({1969, 3024})
_UNAVAILABLE = frozenset(
    {
        1040,  # too many connections
        1053,  # server shutdown in progress
        1077,  # normal shutdown
        1152,  # aborted connection
        1158,  # network read error
        1159,  # network read timeout
        1160,  # network write error
        1161,  # network write timeout
        1203,  # too many connections of this user
        1290,  # read-only server
        1317,  # statement interrupted by KILL
        1792,  # read-only transaction
        1836,  # read-only mode
        1927,  # connection killed
    }
)


class DatabaseError(Exception):
    """Something went wrong in or on the way to a database; the transaction has no effect unless a subclass says so.

    Attributes:
        code: The server's or client library's error number, 0 when there is none.
    """

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class DuplicateKey(DatabaseError):
    """A unique constraint refused a row (1062); `constraint` is the key's name, "PRIMARY" for the primary key."""

    def __init__(self, constraint: str, *, code: int = 1062) -> None:
        # The server's text holds the duplicate value, which may be personal or secret: it is left out.
        super().__init__(f"duplicate entry for key {constraint!r}", code=code)
        self.constraint = constraint


class Deadlock(DatabaseError):
    """The transaction was chosen as a deadlock's victim (1213) or waited too long for a lock (1205): run it again."""


class DatabaseUnavailable(DatabaseError):
    """The server cannot be reached, is going away, or was lost before COMMIT was sent: nothing was committed."""


class DatabaseTimeout(DatabaseUnavailable):
    """The deadline passed while waiting for a connection or for a statement: nothing was committed."""


class CommitOutcomeUnknown(DatabaseError):
    """The connection was lost or the deadline passed while COMMIT was in flight: it may or may not have happened."""


class StatementRefused(DatabaseError):
    """The server refused a statement for another reason, most often a defect of ours; the code says which."""


def is_server_answer(error: BaseException) -> bool:
    """Whether the server itself reported `error` in an error packet and goes on serving the connection."""
    code = error_code(error)
    return code != 0 and not 2000 <= code < 3000 and code not in _UNAVAILABLE


def error_code(error: BaseException) -> int:
    """The error number of a driver error; 0 when it carries none."""
    if isinstance(error, pymysql.err.MySQLError) and error.args and isinstance(error.args[0], int):
        return error.args[0]
    return 0


def translate(error: BaseException, database: str) -> DatabaseError:
    """Maps what a statement or a connection attempt raised to the error that callers act upon.

    Args:
        error: What the driver raised; anything but a server's answer counts as a lost connection.
        database: Name of the database for the message, without account and password.

    Returns:
        The error to raise; statements and values are not part of its message.
    """
    code = error_code(error)
    text = str(error.args[1]) if code and len(error.args) > 1 else type(error).__name__
    if code in _DUPLICATE_KEY:
        return DuplicateKey(constraint_of(text), code=code)
    message = f"{database}: {text} ({code})"
    if code in _DEADLOCK:
        return Deadlock(message, code=code)
    if code in _TIMEOUT:
        return DatabaseTimeout(message, code=code)
    if is_server_answer(error):
        return StatementRefused(message, code=code)
    return DatabaseUnavailable(message, code=code)


def constraint_of(text: str) -> str:
    """The key's name from "Duplicate entry '…' for key 'name'" (MariaDB) or "… for key 'table.name'" (MySQL 8)."""
    _, separator, key = text.rpartition(" for key ")
    return key.strip().strip("'").rpartition(".")[2] if separator else ""
