-- name: acquire_lock
-- Waits until no other runner migrates this database; 1 when the lock is held. It ends with the connection.
SELECT GET_LOCK(%(lock)s, %(wait_s)s);

-- name: release_lock
-- Lets the next runner go on.
SELECT RELEASE_LOCK(%(lock)s);

-- name: create_schema_migration
-- The record of the files that were applied.
CREATE TABLE IF NOT EXISTS schema_migration (
  name VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  checksum BINARY(32) NOT NULL COMMENT 'SHA-256 of the file',
  apply_time DATETIME(3) NOT NULL,
  PRIMARY KEY (name)
) ENGINE = InnoDB;

-- name: applied
-- What was applied already, with the checksums that the files had.
SELECT name, checksum FROM schema_migration;

-- name: record
-- Notes that a file was applied from its first statement to its last.
INSERT INTO schema_migration (name, checksum, apply_time) VALUES (%(name)s, %(checksum)s, UTC_TIMESTAMP(3));

-- name: owned_shards
-- Shards that have their owner row.
SELECT shard FROM shard_owner;

-- name: insert_shard_owner
-- Makes this database the owner of a shard, at the first epoch.
INSERT INTO shard_owner (shard, epoch, state) VALUES (%(shard)s, 1, 1);
