-- Caps of a batch and its recall.

SET @step = IF(EXISTS (SELECT 1 FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'batch' AND column_name = 'recall_state'), 'DO 0',
  'ALTER TABLE batch
    ADD COLUMN recall_state TINYINT UNSIGNED NOT NULL DEFAULT 0 COMMENT ''0 none, 1 running, 2 done'',
    ADD COLUMN uses_per_user INT UNSIGNED NULL COMMENT ''NULL: no limit'',
    ADD COLUMN spend_cap_minor BIGINT NULL COMMENT ''NULL: no limit'',
    ADD COLUMN spend_granted_minor BIGINT NOT NULL DEFAULT 0 COMMENT ''sum of spend_grant; at most the cap'',
    ADD KEY idx_recall (recall_state)');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;

-- Finds a batch's coupons in a shard. It has no status, so that consuming changes nothing in it.
SET @step = IF(EXISTS (SELECT 1 FROM information_schema.statistics
    WHERE table_schema = DATABASE() AND table_name = 'coupon_info' AND index_name = 'idx_batch'), 'DO 0',
  'ALTER TABLE coupon_info ADD KEY idx_batch (shard, batch_id)');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;

-- A recall as it was asked for, beside its batch.
CREATE TABLE IF NOT EXISTS batch_recall (
  shard SMALLINT UNSIGNED NOT NULL,
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  reason VARCHAR(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  stake_coupons BIGINT NOT NULL,
  stake_minor BIGINT NOT NULL,
  stake_unbounded TINYINT NOT NULL,
  caller VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  request_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  trace_id CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  start_time DATETIME(3) NOT NULL,
  finish_time DATETIME(3) NULL,
  PRIMARY KEY (shard, batch_id)
) ENGINE = InnoDB;

-- How far a recall is in one shard, changed in the transaction that voids the coupons.
CREATE TABLE IF NOT EXISTS recall_part (
  shard SMALLINT UNSIGNED NOT NULL COMMENT 'of the coupons',
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  after_coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'the scan under way is here',
  voided_coupons BIGINT NOT NULL,
  voided_minor BIGINT NOT NULL,
  begin_time DATETIME(3) NULL COMMENT 'when the scan under way began; NULL: none is',
  complete_time DATETIME(3) NULL COMMENT 'when the last scan that reached the end began',
  PRIMARY KEY (shard, batch_id)
) ENGINE = InnoDB;

-- Which uses of a batch a user has taken, numbered from 1: two that take the same number meet in the primary key.
CREATE TABLE IF NOT EXISTS batch_use (
  shard SMALLINT UNSIGNED NOT NULL,
  user_id BIGINT NOT NULL,
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  ordinal INT UNSIGNED NOT NULL,
  transaction_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  PRIMARY KEY (shard, user_id, batch_id, ordinal)
) ENGINE = InnoDB;

-- What this database may spend of a batch's cap, and has spent; the shard is the lowest one of the database.
CREATE TABLE IF NOT EXISTS spend_slice (
  shard SMALLINT UNSIGNED NOT NULL,
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  leased_minor BIGINT NOT NULL,
  spent_minor BIGINT NOT NULL,
  PRIMARY KEY (shard, batch_id)
) ENGINE = InnoDB;

-- What was granted of a batch's cap, beside the batch, to each holder of a slice; leased_minor follows it.
CREATE TABLE IF NOT EXISTS spend_grant (
  shard SMALLINT UNSIGNED NOT NULL COMMENT 'of the batch',
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  holder SMALLINT UNSIGNED NOT NULL COMMENT 'shard of the slice',
  granted_minor BIGINT NOT NULL,
  PRIMARY KEY (shard, batch_id, holder)
) ENGINE = InnoDB;
