-- Freezing accounts. An account's row stands before its coupons in the lock order.

-- name: lock_account
-- Locks an account against every write to its coupons.
SELECT shard, user_id, status, reason, last_seq, last_hash, update_time
FROM account_state FORCE INDEX (PRIMARY) WHERE shard = %(shard)s AND user_id = %(user_id)s FOR UPDATE;

-- name: store_account
-- Stores a locked account's new state.
UPDATE account_state SET status = %(status)s, reason = %(reason)s, last_seq = %(last_seq)s, last_hash = %(last_hash)s,
  update_time = %(update_time)s, version = version + 1
WHERE shard = %(shard)s AND user_id = %(user_id)s;
