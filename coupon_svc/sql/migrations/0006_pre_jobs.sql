-- Jobs: bulk issues and imports that go on after their call was answered; what they made, and the journal of exports.

-- One row per job, in its caller's home shard; job_id carries that shard.
CREATE TABLE IF NOT EXISTS job (
  shard SMALLINT UNSIGNED NOT NULL,
  job_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT '19 digits, zero-padded',
  kind TINYINT UNSIGNED NOT NULL COMMENT '1 issue, 2 import',
  state TINYINT UNSIGNED NOT NULL COMMENT '1 running, 2 succeeded, 3 failed',
  phase TINYINT UNSIGNED NOT NULL COMMENT 'how far it is; see domain/job.py',
  direct TINYINT NOT NULL COMMENT '1: its call waits for it',
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  user_id BIGINT NOT NULL COMMENT 'owner of what it issues; 0: codes',
  caller VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  request_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  request_hash BINARY(32) NOT NULL,
  trace_id CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  total_count INT UNSIGNED NOT NULL,
  done_count INT UNSIGNED NOT NULL,
  error TEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'JSON {reason, metadata}; empty unless it fails',
  line_error_count INT UNSIGNED NOT NULL,
  lease_holder BINARY(16) NOT NULL COMMENT 'the process that runs it',
  lease_until DATETIME(3) NOT NULL COMMENT 'by the clock of the database; past it, any process may take over',
  attempts INT UNSIGNED NOT NULL COMMENT 'leases since the last progress',
  create_time DATETIME(3) NOT NULL,
  finish_time DATETIME(3) NULL,
  PRIMARY KEY (shard, job_id),
  KEY idx_due (state, lease_until),
  KEY idx_caller (caller, state)
) ENGINE = InnoDB;

-- The lines of an import, sealed, a chunk a row; gone when the job ends.
CREATE TABLE IF NOT EXISTS job_lines (
  shard SMALLINT UNSIGNED NOT NULL,
  job_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  chunk INT UNSIGNED NOT NULL,
  sealed MEDIUMBLOB NOT NULL COMMENT 'AES-GCM; job_id and chunk are the associated data',
  PRIMARY KEY (shard, job_id, chunk)
) ENGINE = InnoDB;

-- What each chunk of a job made.
CREATE TABLE IF NOT EXISTS job_coupons (
  shard SMALLINT UNSIGNED NOT NULL,
  job_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  chunk INT UNSIGNED NOT NULL,
  coupon_ids MEDIUMBLOB NOT NULL COMMENT 'big-endian numbers of 8 bytes, one per coupon, in order',
  PRIMARY KEY (shard, job_id, chunk)
) ENGINE = InnoDB;

-- What is wrong with the lines of a failed import.
CREATE TABLE IF NOT EXISTS job_line_error (
  shard SMALLINT UNSIGNED NOT NULL,
  job_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  line INT UNSIGNED NOT NULL,
  field VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  reason VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  problem VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  PRIMARY KEY (shard, job_id, line)
) ENGINE = InnoDB;

-- Keeps the codes of an import out of sight until all are there, and lets nobody add one after it was undone.
CREATE TABLE IF NOT EXISTS import_gate (
  shard SMALLINT UNSIGNED NOT NULL COMMENT 'a shard that holds code_index rows of the import',
  made_by BINARY(32) NOT NULL COMMENT 'code_index.made_by',
  state TINYINT UNSIGNED NOT NULL COMMENT '1 filling, 2 open, 3 undone',
  change_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, made_by),
  KEY idx_change (change_time)
) ENGINE = InnoDB;

-- Activations under way: a row from the mark to the close, so that one whose process died is found.
CREATE TABLE IF NOT EXISTS activation_mark (
  shard SMALLINT UNSIGNED NOT NULL,
  coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'the unactivated coupon',
  mark_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, coupon_id),
  KEY idx_time (mark_time)
) ENGINE = InnoDB;

INSERT INTO activation_mark (shard, coupon_id, mark_time)
SELECT c.shard, c.coupon_id, c.create_time FROM coupon_info c
WHERE c.user_id = 0 AND c.status = 1 AND c.bound_coupon_id IS NOT NULL
ON DUPLICATE KEY UPDATE mark_time = activation_mark.mark_time;

-- Who was given codes, page by page, chained per batch by a keyed hash; in the batch's shard.
CREATE TABLE IF NOT EXISTS code_export (
  shard SMALLINT UNSIGNED NOT NULL,
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  seq BIGINT UNSIGNED NOT NULL,
  job_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
  caller VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  subject VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  ip VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  masked TINYINT NOT NULL,
  line_count INT UNSIGNED NOT NULL,
  first_coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  last_coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  trace_id CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  event_time DATETIME(3) NOT NULL,
  key_id VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  prev_hash BINARY(32) NOT NULL,
  hash BINARY(32) NOT NULL,
  PRIMARY KEY (shard, batch_id, seq)
) ENGINE = InnoDB;

-- Finds a batch's coupons in a shard. It has no status, so that consuming changes nothing in it.
SET @step = IF(EXISTS (SELECT 1 FROM information_schema.statistics
    WHERE table_schema = DATABASE() AND table_name = 'coupon_info' AND index_name = 'idx_batch'), 'DO 0',
  'ALTER TABLE coupon_info ADD KEY idx_batch (shard, batch_id)');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
