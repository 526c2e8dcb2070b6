-- Refunds: what was given back of transactions and orders. The journal holds the contra rows; these say how they hang together.

-- One row per refund; it lives in the shard of the coupons it concerns.
CREATE TABLE IF NOT EXISTS refund (
  shard SMALLINT UNSIGNED NOT NULL,
  refund_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'TX…, transaction_id of its journal rows',
  merchant_id VARCHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  order_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  caller VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
  request_id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  refund_time DATETIME(3) NOT NULL,
  PRIMARY KEY (shard, refund_id),
  KEY idx_merchant_order (merchant_id, order_id),
  KEY idx_request (request_id)
) ENGINE = InnoDB;

-- What a refund gave back of each transaction.
CREATE TABLE IF NOT EXISTS refund_coupon (
  shard SMALLINT UNSIGNED NOT NULL,
  refund_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  original_transaction_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  amount_minor BIGINT NOT NULL,
  replacement_coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NULL COMMENT 'the new coupon of a single-use one',
  PRIMARY KEY (shard, refund_id, original_transaction_id),
  KEY idx_original_transaction (original_transaction_id)
) ENGINE = InnoDB;

-- How a refund spreads over the lines of its order, and in each over what had paid for it.
CREATE TABLE IF NOT EXISTS refund_line (
  shard SMALLINT UNSIGNED NOT NULL,
  refund_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  position SMALLINT UNSIGNED NOT NULL COMMENT 'of the part in its refund, from 0',
  line_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL COMMENT 'empty: consumed without lines',
  original_transaction_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'empty: cash',
  amount_minor BIGINT NOT NULL,
  PRIMARY KEY (shard, refund_id, position),
  KEY idx_original_transaction (original_transaction_id)
) ENGINE = InnoDB;
