-- The schema of one coupon database. A database holds a range of the 128 logical shards; `shard` leads every primary key.
-- Times are UTC. Amounts in fen end in _minor; coupon_info.balance alone is DECIMAL(12,2) yuan.

-- Who may write a shard. Every write transaction reads its row LOCK IN SHARE MODE; whoever moves the shard updates it first.
CREATE TABLE IF NOT EXISTS shard_owner (
  shard SMALLINT UNSIGNED NOT NULL,
  epoch BIGINT UNSIGNED NOT NULL,
  state TINYINT UNSIGNED NOT NULL COMMENT '1 owned, 2 moving, 3 moved',
  PRIMARY KEY (shard)
) ENGINE = InnoDB;

-- One row per user from the first coupon on; read LOCK IN SHARE MODE by every write to the user's coupons.
CREATE TABLE IF NOT EXISTS account_state (
  shard SMALLINT UNSIGNED NOT NULL,
  user_id BIGINT NOT NULL,
  status TINYINT UNSIGNED NOT NULL COMMENT '1 normal, 2 frozen',
  version BIGINT UNSIGNED NOT NULL,
  update_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, user_id)
) ENGINE = InnoDB;

-- Makes mutations repeatable; written in the same transaction as the effect, purged after expire_time.
CREATE TABLE IF NOT EXISTS request_record (
  shard SMALLINT UNSIGNED NOT NULL,
  caller VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  request_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  request_hash BINARY(32) NOT NULL COMMENT 'SHA-256 of method and payload',
  response MEDIUMBLOB NOT NULL COMMENT 'serialised reply; where it holds codes, without them',
  create_time DATETIME(3) NOT NULL,
  expire_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, caller, request_id),
  KEY idx_expire (expire_time)
) ENGINE = InnoDB;

-- Immutable terms; coupons point here.
CREATE TABLE IF NOT EXISTS coupon_terms (
  shard SMALLINT UNSIGNED NOT NULL,
  terms_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  terms LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'JSON, see domain/terms.py',
  create_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, terms_id)
) ENGINE = InnoDB;

-- A batch lives in its maker's home shard; its id carries that shard.
CREATE TABLE IF NOT EXISTS batch (
  shard SMALLINT UNSIGNED NOT NULL,
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  terms_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  name VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  total_quantity BIGINT NULL COMMENT 'NULL: no limit',
  issued_quantity BIGINT NOT NULL,
  code_length TINYINT UNSIGNED NOT NULL,
  block_scope TINYINT UNSIGNED NOT NULL COMMENT '0 none, 1 claim, 2 consume, 3 both',
  version BIGINT UNSIGNED NOT NULL,
  create_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, batch_id)
) ENGINE = InnoDB;

-- What one request drew from a batch, so that its retry draws nothing more.
CREATE TABLE IF NOT EXISTS batch_draw (
  shard SMALLINT UNSIGNED NOT NULL,
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  caller VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  request_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  request_hash BINARY(32) NOT NULL,
  quantity INT UNSIGNED NOT NULL,
  create_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, batch_id, caller, request_id)
) ENGINE = InnoDB;

-- One row per coupon.
CREATE TABLE IF NOT EXISTS coupon_info (
  shard SMALLINT UNSIGNED NOT NULL,
  coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT '19 digits, zero-padded',
  user_id BIGINT NOT NULL COMMENT '0: no owner yet',
  balance DECIMAL(12, 2) NOT NULL COMMENT 'yuan; gift cards only, else 0.00',
  status TINYINT NOT NULL COMMENT '1 unactivated, 2 used, 3 activated, 4 frozen, 5 expired, 6 refunded',
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  terms_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  expires_at DATETIME(3) NOT NULL COMMENT 'the first moment at which it is expired',
  version BIGINT UNSIGNED NOT NULL COMMENT 'seq of its last journal row',
  last_hash BINARY(32) NOT NULL COMMENT 'hash of its last journal row',
  code_sealed VARBINARY(128) NOT NULL COMMENT 'AES-GCM; the coupon_id is the associated data',
  bound_user_id BIGINT NULL COMMENT 'an unactivated coupon promised to this user',
  bound_coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'the lasting id in the shard of that user',
  bound_by VARBINARY(32) NULL COMMENT 'SHA-256 of the caller and request_id that bound it',
  create_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, coupon_id),
  KEY idx_user_status (user_id, status) USING BTREE
) ENGINE = InnoDB;

-- Finds the coupon of a code. Codes made here lie in the shard they carry, imported ones in HMAC % 128.
CREATE TABLE IF NOT EXISTS code_index (
  shard SMALLINT UNSIGNED NOT NULL,
  key_id VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  code_hmac BINARY(32) NOT NULL,
  coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  batch_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  made_by BINARY(32) NOT NULL COMMENT 'SHA-256 of the caller and request_id that made it',
  PRIMARY KEY (shard, key_id, code_hmac)
) ENGINE = InnoDB;

-- The next unused counter of the code permutation, per shard and length.
CREATE TABLE IF NOT EXISTS code_counter (
  shard SMALLINT UNSIGNED NOT NULL,
  code_length TINYINT UNSIGNED NOT NULL,
  next_counter BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (shard, code_length)
) ENGINE = InnoDB;

-- Lengths in which codes of other systems were imported; a code of another length that fails its checksum needs no query.
CREATE TABLE IF NOT EXISTS imported_code_length (
  shard SMALLINT UNSIGNED NOT NULL,
  code_length TINYINT UNSIGNED NOT NULL,
  PRIMARY KEY (shard, code_length)
) ENGINE = InnoDB;

-- Resolves a transaction.
CREATE TABLE IF NOT EXISTS coupon_transaction (
  shard SMALLINT UNSIGNED NOT NULL,
  transaction_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  user_id BIGINT NOT NULL,
  merchant_id VARCHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  order_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  amount_minor BIGINT NOT NULL,
  deduction_minor BIGINT NOT NULL,
  balance_after_minor BIGINT NOT NULL,
  settlement_held TINYINT NOT NULL COMMENT '1: accepted while risk control was away',
  caller VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  request_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  consume_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, transaction_id),
  KEY idx_merchant_order (merchant_id, order_id),
  KEY idx_request (request_id)
) ENGINE = InnoDB;

-- Every state change, one row: the audit record and the event in one, chained per coupon by a keyed hash.
CREATE TABLE IF NOT EXISTS coupon_journal (
  shard SMALLINT UNSIGNED NOT NULL,
  coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  seq BIGINT UNSIGNED NOT NULL COMMENT 'version of the coupon after the change',
  month INT UNSIGNED NOT NULL COMMENT 'yyyymm of event_time, UTC',
  kind TINYINT UNSIGNED NOT NULL COMMENT '1 issued, 2 imported, 3 activation marked, 4 activated, 5 consumed',
  status_before TINYINT NOT NULL COMMENT '0: none',
  status_after TINYINT NOT NULL,
  user_id BIGINT NOT NULL,
  merchant_id VARCHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  order_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  amount_minor BIGINT NOT NULL COMMENT 'change of the balance, signed',
  order_amount_minor BIGINT NOT NULL,
  deduction_minor BIGINT NOT NULL,
  balance_after_minor BIGINT NOT NULL,
  transaction_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
  original_transaction_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
  settlement_held TINYINT NOT NULL,
  lock_fence BIGINT UNSIGNED NULL COMMENT 'of the Redis lock, for diagnosis only',
  caller VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  request_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  trace_id CHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  event_time DATETIME(3) NOT NULL,
  key_id VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'of the audit key',
  prev_hash BINARY(32) NOT NULL,
  hash BINARY(32) NOT NULL,
  PRIMARY KEY (shard, coupon_id, seq, month),
  KEY idx_original_transaction (original_transaction_id)
) ENGINE = InnoDB
PARTITION BY RANGE (month) (
  PARTITION p2026 VALUES LESS THAN (202701),
  PARTITION p202701 VALUES LESS THAN (202702),
  PARTITION p202702 VALUES LESS THAN (202703),
  PARTITION p202703 VALUES LESS THAN (202704),
  PARTITION p202704 VALUES LESS THAN (202705),
  PARTITION p202705 VALUES LESS THAN (202706),
  PARTITION p202706 VALUES LESS THAN (202707),
  PARTITION p202707 VALUES LESS THAN (202708),
  PARTITION p202708 VALUES LESS THAN (202709),
  PARTITION p202709 VALUES LESS THAN (202710),
  PARTITION p202710 VALUES LESS THAN (202711),
  PARTITION p202711 VALUES LESS THAN (202712),
  PARTITION p202712 VALUES LESS THAN (202801),
  PARTITION p_later VALUES LESS THAN MAXVALUE
);

-- What is still to be published: each row points at a journal row.
CREATE TABLE IF NOT EXISTS outbox (
  shard SMALLINT UNSIGNED NOT NULL,
  coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  seq BIGINT UNSIGNED NOT NULL,
  month INT UNSIGNED NOT NULL,
  create_time DATETIME(3) NOT NULL,
  publish_time DATETIME(3) NULL COMMENT 'NULL: not published yet',
  PRIMARY KEY (shard, coupon_id, seq),
  KEY idx_unpublished (publish_time, shard)
) ENGINE = InnoDB;
