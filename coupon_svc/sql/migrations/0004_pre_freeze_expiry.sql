-- Freezing and expiry: accounts and batches get a chain in the journal, journal rows a reason, and coupons an index of
-- those that are due. An ALTER can't be repeated by itself on every server, so each asks first whether it was done.

SET @step = IF(EXISTS (SELECT 1 FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'account_state' AND column_name = 'last_hash'), 'DO 0',
  'ALTER TABLE account_state
    ADD COLUMN reason VARCHAR(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT ''''
      COMMENT ''why it is frozen; empty when it is not'',
    ADD COLUMN last_seq BIGINT UNSIGNED NOT NULL DEFAULT 0 COMMENT ''seq of its last journal row; 0: none'',
    ADD COLUMN last_hash BINARY(32) NOT NULL
      DEFAULT X''0000000000000000000000000000000000000000000000000000000000000000''
      COMMENT ''hash of its last journal row''');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;

SET @step = IF(EXISTS (SELECT 1 FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'batch' AND column_name = 'last_hash'), 'DO 0',
  'ALTER TABLE batch
    ADD COLUMN last_seq BIGINT UNSIGNED NOT NULL DEFAULT 0 COMMENT ''seq of its last journal row; 0: none'',
    ADD COLUMN last_hash BINARY(32) NOT NULL
      DEFAULT X''0000000000000000000000000000000000000000000000000000000000000000''
      COMMENT ''hash of its last journal row''');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;

-- coupon_id of a row whose chain is no coupon's: a batch_id, or "U" and the 19 digits of a user_id.
SET @step = IF(EXISTS (SELECT 1 FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'coupon_journal' AND column_name = 'reason'), 'DO 0',
  'ALTER TABLE coupon_journal
    ADD COLUMN reason VARCHAR(256) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT ''''
      COMMENT ''as the caller gave it; empty for most kinds''');
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;

-- When a coupon is to be expired: NULL once it is in an end state, used up, or bound to a coupon under its lasting id, and
-- while a reservation holds it, which may still be confirmed. So the index holds what is to be done and nothing else, and
-- the sweep needs no memory of its own. Stored, since purging entries of an index on a virtual column must compute it
-- again.
SET @unheld = IF(EXISTS (SELECT 1 FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'coupon_info' AND column_name = 'holds'), ' AND holds = 0', '');
SET @step = IF(EXISTS (SELECT 1 FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'coupon_info' AND column_name = 'due_at'), 'DO 0',
  CONCAT('ALTER TABLE coupon_info
    ADD COLUMN due_at DATETIME(3) GENERATED ALWAYS AS (
      CASE WHEN status IN (1, 3, 4) AND bound_user_id IS NULL', @unheld, ' THEN expires_at END) STORED,
    ADD KEY idx_due (shard, due_at)'));
PREPARE step FROM @step;
EXECUTE step;
DEALLOCATE PREPARE step;
