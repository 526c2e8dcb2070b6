-- name: set_isolation
-- Reads see what was committed before each statement; gaps are not locked. The statement form is the same on MySQL and
-- MariaDB, whose variables have different names.
SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;

-- name: set_modes
-- Values that don't fit are errors, times are UTC, errors are in English (the name of a key is read from them), and a
-- transaction gives up on a lock after some seconds: the server doesn't notice a client that left while it waits.
SET SESSION
  sql_mode = 'STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION',
  time_zone = '+00:00',
  lc_messages = 'en_US',
  innodb_lock_wait_timeout = %(lock_wait_s)s;

-- name: session_variables
-- What the session really has, whatever was asked for.
SHOW SESSION VARIABLES WHERE Variable_name IN (
  'autocommit', 'binlog_format', 'innodb_lock_wait_timeout', 'log_bin', 'max_allowed_packet', 'sql_mode', 'time_zone',
  'transaction_isolation', 'tx_isolation'
);

-- name: begin
-- Starts a transaction.
START TRANSACTION;

-- name: isolate_next
-- Lets the next transaction alone, not the session, see one moment throughout.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;

-- name: begin_moment
-- Starts a transaction that reads, and whose every statement sees what was committed at this moment.
START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY;

-- name: commit
-- Makes a transaction durable.
COMMIT;

-- name: rollback
-- Takes a transaction back.
ROLLBACK;

-- name: ping
-- Proves that the server answers statements.
SELECT 1;
