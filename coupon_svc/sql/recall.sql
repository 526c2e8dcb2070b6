-- Recalling batches. A coupon with bound_user_id lives on under its lasting id.
-- Lock order: shard_owner, account_state, batch or recall_part, coupons in key order, then appends.

-- name: count_by_status
-- Coupons of a batch in one shard by status and the sum of their balances in fen, with expiry taken into account.
SELECT CASE WHEN status IN (1, 3, 4) AND expires_at <= %(now)s THEN 5 ELSE status END, COUNT(*), CAST(SUM(balance) * 100 AS SIGNED)
FROM coupon_info FORCE INDEX (idx_batch)
WHERE shard = %(shard)s AND batch_id = %(batch_id)s AND bound_user_id IS NULL
GROUP BY 1;

-- name: recall_batch
-- Blocks a locked batch for every use, for good, and moves the head of its chain on.
UPDATE batch SET block_scope = 3, recall_state = 1, last_seq = %(last_seq)s, last_hash = %(last_hash)s,
  version = version + 1
WHERE shard = %(shard)s AND batch_id = %(batch_id)s;

-- name: insert_recall
-- Notes a recall.
INSERT INTO batch_recall (shard, batch_id, reason, stake_coupons, stake_minor, stake_unbounded, caller, request_id,
  trace_id, start_time)
VALUES (%(shard)s, %(batch_id)s, %(reason)s, %(stake_coupons)s, %(stake_minor)s, %(stake_unbounded)s, %(caller)s,
  %(request_id)s, %(trace_id)s, %(start_time)s);

-- name: get_recall
-- A recall as it was asked for.
SELECT batch_id, reason, stake_coupons, stake_minor, stake_unbounded, caller, request_id, trace_id, start_time, finish_time
FROM batch_recall WHERE shard = %(shard)s AND batch_id = %(batch_id)s;

-- name: running_recalls
-- Batches whose recall goes on.
SELECT batch_id FROM batch FORCE INDEX (idx_recall) WHERE recall_state = 1 ORDER BY shard, batch_id LIMIT %(limit)s;

-- name: recall_parts
-- How far a recall is in the shards of this database.
SELECT shard, batch_id, after_coupon_id, voided_coupons, voided_minor, begin_time, complete_time
FROM recall_part FORCE INDEX (PRIMARY) WHERE (shard, batch_id) IN %(keys)s;

-- name: add_part
-- Begins a recall in a shard; a row that came in between stays as it is.
INSERT INTO recall_part (shard, batch_id, after_coupon_id, voided_coupons, voided_minor)
VALUES (%(shard)s, %(batch_id)s, '', 0, 0)
ON DUPLICATE KEY UPDATE batch_id = recall_part.batch_id;

-- name: lock_part
-- Locks how far a recall is in a shard.
SELECT shard, batch_id, after_coupon_id, voided_coupons, voided_minor, begin_time, complete_time
FROM recall_part FORCE INDEX (PRIMARY) WHERE shard = %(shard)s AND batch_id = %(batch_id)s FOR UPDATE;

-- name: store_part
-- Stores how far a recall is in a shard.
UPDATE recall_part SET after_coupon_id = %(after_coupon_id)s, voided_coupons = %(voided_coupons)s,
  voided_minor = %(voided_minor)s, begin_time = %(begin_time)s, complete_time = %(complete_time)s
WHERE shard = %(shard)s AND batch_id = %(batch_id)s;

-- name: unused_coupons
-- Unused, unexpired coupons of a batch in one shard behind a coupon id, in the order of ids.
SELECT coupon_id, user_id FROM coupon_info FORCE INDEX (idx_batch)
WHERE shard = %(shard)s AND batch_id = %(batch_id)s AND coupon_id > %(after)s
  AND status IN (1, 3, 4) AND bound_user_id IS NULL AND expires_at > %(now)s
ORDER BY coupon_id LIMIT %(limit)s;

-- name: still_unused
-- Which of the given coupons, locked before, are unused and unexpired.
SELECT coupon_id FROM coupon_info FORCE INDEX (PRIMARY) WHERE (shard, coupon_id) IN %(keys)s
  AND status IN (1, 3, 4) AND bound_user_id IS NULL AND expires_at > %(now)s;

-- name: finish_recall
-- Notes on a locked batch that every unused coupon is voided.
UPDATE batch SET recall_state = 2, version = version + 1 WHERE shard = %(shard)s AND batch_id = %(batch_id)s;

-- name: end_recall
-- Notes when the last coupon was voided.
UPDATE batch_recall SET finish_time = %(now)s WHERE shard = %(shard)s AND batch_id = %(batch_id)s;
