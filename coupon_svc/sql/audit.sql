-- What reads the journal for audits, and what writes signed roots. Audits read one moment and lock nothing.

-- name: coupon_heads
-- What coupons of a shard say about the ends of their chains, by id.
SELECT coupon_id, user_id, bound_user_id, status, CAST(balance * 100 AS SIGNED), version, last_hash
FROM coupon_info FORCE INDEX (PRIMARY)
WHERE shard = %(shard)s AND coupon_id > %(above)s AND coupon_id <= %(upto)s
ORDER BY coupon_id LIMIT %(limit)s;

-- name: batch_heads
-- What batches of a shard say about the ends of their chains; what is blocked stands for their status.
SELECT batch_id, last_seq, last_hash, block_scope FROM batch FORCE INDEX (PRIMARY)
WHERE shard = %(shard)s AND batch_id > %(above)s AND batch_id <= %(upto)s ORDER BY batch_id;

-- name: account_heads
-- What accounts say about the ends of their chains.
SELECT user_id, last_seq, last_hash, status FROM account_state FORCE INDEX (PRIMARY)
WHERE (shard, user_id) IN %(keys)s;

-- name: coupons_of_user
-- Ids of a user's coupons.
SELECT coupon_id FROM coupon_info FORCE INDEX (idx_user_status)
WHERE user_id = %(user_id)s AND shard = %(shard)s AND coupon_id > %(above)s ORDER BY coupon_id LIMIT %(limit)s;

-- name: audited_rows
-- Journal rows of a range of chains, behind a given row, in the order of the chains.
SELECT shard, coupon_id, seq, kind, status_before, status_after, user_id, merchant_id, order_id, amount_minor,
  order_amount_minor, deduction_minor, balance_after_minor, transaction_id, original_transaction_id, settlement_held,
  lock_fence, caller, request_id, trace_id, event_time, key_id, prev_hash, hash, reason,
  month
FROM coupon_journal FORCE INDEX (PRIMARY)
WHERE shard = %(shard)s AND coupon_id >= %(after_id)s AND coupon_id <= %(upto)s
  AND (coupon_id > %(after_id)s OR seq > %(after_seq)s OR (seq = %(after_seq)s AND month > %(after_month)s))
ORDER BY coupon_id, seq, month LIMIT %(limit)s;

-- name: audited_outbox
-- Outbox rows from one journal row to another, both included.
SELECT coupon_id, seq, month, create_time, publish_time IS NOT NULL
FROM outbox FORCE INDEX (PRIMARY)
WHERE shard = %(shard)s AND coupon_id >= %(from_id)s AND coupon_id <= %(to_id)s
  AND (coupon_id > %(from_id)s OR seq >= %(from_seq)s) AND (coupon_id < %(to_id)s OR seq <= %(to_seq)s);

-- name: audited_spends
-- Transactions by id.
SELECT transaction_id, coupon_id, user_id, merchant_id, order_id, amount_minor, deduction_minor, balance_after_minor,
  settlement_held, caller, request_id, consume_time
FROM coupon_transaction FORCE INDEX (PRIMARY) WHERE (shard, transaction_id) IN %(keys)s;

-- name: audited_spends_of_requests
-- Transactions of a shard by the requests that made them.
SELECT transaction_id, coupon_id, user_id, merchant_id, order_id, amount_minor, deduction_minor, balance_after_minor,
  settlement_held, caller, request_id, consume_time
FROM coupon_transaction FORCE INDEX (idx_request)
WHERE request_id IN %(request_ids)s AND shard = %(shard)s LIMIT %(limit)s;

-- name: transaction_ids
-- Transactions of a shard, by id.
SELECT transaction_id, coupon_id FROM coupon_transaction FORCE INDEX (PRIMARY)
WHERE shard = %(shard)s AND transaction_id > %(above)s ORDER BY transaction_id LIMIT %(limit)s;

-- name: journaled_transactions
-- Which transactions the journals of these coupons know.
SELECT DISTINCT coupon_id, transaction_id FROM coupon_journal FORCE INDEX (PRIMARY)
WHERE shard = %(shard)s AND coupon_id IN %(coupon_ids)s AND transaction_id IN %(transaction_ids)s;

-- name: anchors
-- Rows of a range of chains over which roots were signed.
SELECT coupon_id, seq, hash, root_number FROM audit_leaf FORCE INDEX (PRIMARY)
WHERE shard = %(shard)s AND coupon_id > %(above)s AND coupon_id <= %(upto)s ORDER BY coupon_id, seq;

-- name: journal_hash
-- The hash of one journal row.
SELECT hash FROM coupon_journal WHERE shard = %(shard)s AND coupon_id = %(coupon_id)s AND seq = %(seq)s LIMIT 1;

-- name: roots
-- Roots of a shard, in order.
SELECT number, root_time, leaf_count, merkle_root, previous, key_id, signature FROM audit_root
WHERE shard = %(shard)s AND number > %(above)s ORDER BY number LIMIT %(limit)s;

-- name: last_root
-- The newest root of a shard.
SELECT number, root_time, leaf_count, merkle_root, previous, key_id, signature FROM audit_root
WHERE shard = %(shard)s ORDER BY number DESC LIMIT 1;

-- name: root_times
-- When the newest root of each shard was made.
SELECT shard, MAX(root_time) FROM audit_root GROUP BY shard;

-- name: root_leaves
-- What a root was signed over.
SELECT coupon_id, seq, hash FROM audit_leaf FORCE INDEX (idx_root)
WHERE shard = %(shard)s AND root_number = %(number)s ORDER BY coupon_id;

-- name: heads_until
-- The last of the next coupons of a shard, so many at a time; NULL behind the last one.
SELECT MAX(coupon_id) FROM (
  SELECT coupon_id FROM coupon_info FORCE INDEX (PRIMARY)
  WHERE shard = %(shard)s AND coupon_id > %(above)s ORDER BY coupon_id LIMIT %(limit)s
) next_coupons;

-- name: unanchored_heads
-- Ends of chains over which no root was signed yet.
SELECT c.coupon_id, c.version, c.last_hash
FROM coupon_info c FORCE INDEX (PRIMARY)
LEFT JOIN audit_leaf l FORCE INDEX (PRIMARY) ON l.shard = c.shard AND l.coupon_id = c.coupon_id AND l.seq = c.version
WHERE c.shard = %(shard)s AND c.coupon_id > %(above)s AND c.coupon_id <= %(upto)s AND l.seq IS NULL
ORDER BY c.coupon_id;

-- name: hold_owner
-- Holds the owner row of a shard until commit; whoever moves the shard changes it first.
SELECT epoch, state FROM shard_owner WHERE shard = %(shard)s LOCK IN SHARE MODE;

-- name: insert_root
-- Adds a root; a duplicate key means that another process was faster.
INSERT INTO audit_root (shard, number, root_time, leaf_count, merkle_root, previous, key_id, signature)
VALUES (%(shard)s, %(number)s, %(root_time)s, %(leaf_count)s, %(merkle_root)s, %(previous)s, %(key_id)s, %(signature)s);

-- name: insert_leaves
-- Adds what a root was signed over.
INSERT INTO audit_leaf (shard, coupon_id, seq, hash, root_number)
VALUES (%(shard)s, %(coupon_id)s, %(seq)s, %(hash)s, %(root_number)s);
