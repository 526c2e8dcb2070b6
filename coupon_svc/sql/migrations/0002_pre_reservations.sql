-- Reservations: coupons held for an order until it is confirmed, cancelled, or the hold expires.

-- One row per reservation, or per cancellation of one that never arrived. Locked before the coupons it holds.
CREATE TABLE IF NOT EXISTS reservation (
  shard SMALLINT UNSIGNED NOT NULL,
  caller VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  reservation_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  state TINYINT UNSIGNED NOT NULL COMMENT '1 held, 2 confirmed, 3 cancelled, 4 expired, 5 reversed',
  user_id BIGINT NOT NULL,
  merchant_id VARCHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  order_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'empty: cancelled before it arrived',
  amount_minor BIGINT NOT NULL COMMENT 'of the order',
  order_lines LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'JSON, see domain/order_lines.py',
  settlement_held TINYINT NOT NULL COMMENT '1: accepted while risk control was away',
  reserve_hash BINARY(32) NOT NULL COMMENT 'SHA-256 of what was reserved; zeros: cancelled before it arrived',
  reserve_response MEDIUMBLOB NOT NULL,
  confirm_hash BINARY(32) NOT NULL COMMENT 'SHA-256 of what was confirmed; zeros: not confirmed',
  confirm_response MEDIUMBLOB NOT NULL,
  expire_time DATETIME(3) NOT NULL,
  create_time DATETIME(3) NOT NULL,
  update_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, caller, reservation_id),
  KEY idx_state_expire (state, expire_time),
  KEY idx_merchant_order (merchant_id, order_id)
) ENGINE = InnoDB;

-- What a reservation holds of each coupon. Rows change only under the lock of their coupon.
CREATE TABLE IF NOT EXISTS coupon_hold (
  shard SMALLINT UNSIGNED NOT NULL,
  caller VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  reservation_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  position TINYINT UNSIGNED NOT NULL COMMENT 'order in which the coupons apply, from 0',
  coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  state TINYINT UNSIGNED NOT NULL COMMENT '1 held, 2 consumed, 3 released',
  base_minor BIGINT NOT NULL COMMENT 'what was left to pay before it',
  deduction_minor BIGINT NOT NULL COMMENT 'what it takes off; when consumed, what it took',
  held_minor BIGINT NOT NULL COMMENT 'of a gift card balance; else 0',
  transaction_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL,
  expire_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, caller, reservation_id, position),
  KEY idx_coupon (shard, coupon_id, state)
) ENGINE = InnoDB;

-- How the deduction of a transaction spreads over the lines of its order.
CREATE TABLE IF NOT EXISTS transaction_line (
  shard SMALLINT UNSIGNED NOT NULL,
  transaction_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  position SMALLINT UNSIGNED NOT NULL COMMENT 'of the line in its order, from 0',
  line_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  amount_minor BIGINT NOT NULL COMMENT 'price of the line before any coupon',
  deduction_minor BIGINT NOT NULL,
  PRIMARY KEY (shard, transaction_id, position)
) ENGINE = InnoDB;

-- The latest term of each job that a leader does.
CREATE TABLE IF NOT EXISTS leader_epoch (
  job VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  epoch BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (job)
) ENGINE = InnoDB;

-- What unreleased holds take of a coupon, read with the coupon's row. MySQL knows no ADD COLUMN IF NOT EXISTS.
SET @missing = (SELECT COUNT(*) = 0 FROM information_schema.columns WHERE table_schema = DATABASE()
  AND table_name = 'coupon_info' AND column_name = 'holds');
SET @ddl = IF(@missing, 'ALTER TABLE coupon_info
  ADD COLUMN held DECIMAL(12, 2) NOT NULL DEFAULT 0.00 COMMENT ''yuan of the balance in unreleased holds'',
  ADD COLUMN holds SMALLINT UNSIGNED NOT NULL DEFAULT 0 COMMENT ''unreleased holds'',
  ADD COLUMN hold_expires_at DATETIME(3) NULL COMMENT ''when the first of them runs out''', 'DO 0');
PREPARE add_holds FROM @ddl;
EXECUTE add_holds;
DEALLOCATE PREPARE add_holds;

SET @missing = (SELECT COUNT(*) = 0 FROM information_schema.columns WHERE table_schema = DATABASE()
  AND table_name = 'coupon_transaction' AND column_name = 'reverse_time');
SET @ddl = IF(@missing, 'ALTER TABLE coupon_transaction
  ADD COLUMN reservation_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT ''''
    COMMENT ''the reservation whose confirmation it was'',
  ADD COLUMN reverse_time DATETIME(3) NULL COMMENT ''when it was reversed''', 'DO 0');
PREPARE add_reversals FROM @ddl;
EXECUTE add_reversals;
DEALLOCATE PREPARE add_reversals;
