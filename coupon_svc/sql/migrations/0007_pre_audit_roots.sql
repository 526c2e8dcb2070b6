-- Signed roots of the journal. They are exported to files as well: what is rewritten here shows there.

-- One row per root: what was signed about the heads of the shard's chains that changed since the root before.
CREATE TABLE IF NOT EXISTS audit_root (
  shard SMALLINT UNSIGNED NOT NULL,
  number BIGINT UNSIGNED NOT NULL COMMENT 'counts the roots of the shard, from 1',
  root_time DATETIME(3) NOT NULL,
  leaf_count INT UNSIGNED NOT NULL,
  merkle_root BINARY(32) NOT NULL,
  previous BINARY(32) NOT NULL COMMENT 'SHA-256 of the root before; zeros for the first',
  key_id VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL COMMENT 'of the signing key',
  signature BINARY(64) NOT NULL COMMENT 'Ed25519',
  PRIMARY KEY (shard, number)
) ENGINE = InnoDB;

-- What each root is over: a row that was the head of its chain.
CREATE TABLE IF NOT EXISTS audit_leaf (
  shard SMALLINT UNSIGNED NOT NULL,
  coupon_id VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
  seq BIGINT UNSIGNED NOT NULL,
  hash BINARY(32) NOT NULL,
  root_number BIGINT UNSIGNED NOT NULL,
  PRIMARY KEY (shard, coupon_id, seq),
  KEY idx_root (shard, root_number, coupon_id)
) ENGINE = InnoDB;
