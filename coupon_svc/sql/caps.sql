-- Caps of batches. Uses stand behind coupons in the lock order, slices behind uses, and both before every append.

-- name: uses
-- Numbers of uses that users have taken.
SELECT shard, user_id, batch_id, ordinal FROM batch_use FORCE INDEX (PRIMARY)
WHERE (shard, user_id, batch_id) IN %(keys)s;

-- name: lock_uses
-- The same, locked, so that transactions which take uses of the same user follow one another.
SELECT shard, user_id, batch_id, ordinal FROM batch_use FORCE INDEX (PRIMARY)
WHERE (shard, user_id, batch_id) IN %(keys)s ORDER BY shard, user_id, batch_id FOR UPDATE;

-- name: insert_uses
-- Takes uses; a duplicate key means that another transaction took the same number first.
INSERT INTO batch_use (shard, user_id, batch_id, ordinal, transaction_id)
VALUES (%(shard)s, %(user_id)s, %(batch_id)s, %(ordinal)s, %(transaction_id)s);

-- name: delete_use
-- Gives back the use of a transaction that was undone.
DELETE FROM batch_use
WHERE shard = %(shard)s AND user_id = %(user_id)s AND batch_id = %(batch_id)s AND transaction_id = %(transaction_id)s;

-- name: lock_slices
-- Locks existing slices.
SELECT batch_id, leased_minor - spent_minor FROM spend_slice FORCE INDEX (PRIMARY)
WHERE (shard, batch_id) IN %(keys)s ORDER BY shard, batch_id FOR UPDATE;

-- name: spend_slices
-- Spends from slices that hold enough; the rows matched are counted.
UPDATE /*rows:shard,batch_id:ascii,amount_minor*/ d
STRAIGHT_JOIN spend_slice s FORCE INDEX (PRIMARY)
  ON s.shard = d.shard AND s.batch_id = d.batch_id AND s.spent_minor + d.amount_minor <= s.leased_minor
SET s.spent_minor = s.spent_minor + d.amount_minor;

-- name: return_to_slices
-- Returns what was spent by consumptions that were undone; the rows matched are counted.
UPDATE /*rows:shard,batch_id:ascii,amount_minor*/ d
STRAIGHT_JOIN spend_slice s FORCE INDEX (PRIMARY)
  ON s.shard = d.shard AND s.batch_id = d.batch_id
SET s.spent_minor = s.spent_minor - d.amount_minor;

-- name: get_slice
-- One slice, without locks.
SELECT leased_minor, spent_minor FROM spend_slice WHERE shard = %(shard)s AND batch_id = %(batch_id)s;

-- name: add_slice
-- Adds an empty slice; a row that came in between stays as it is.
INSERT INTO spend_slice (shard, batch_id, leased_minor, spent_minor) VALUES (%(shard)s, %(batch_id)s, 0, 0)
ON DUPLICATE KEY UPDATE batch_id = spend_slice.batch_id;

-- name: raise_slice
-- Raises a slice to what was granted to it in all.
UPDATE spend_slice SET leased_minor = GREATEST(leased_minor, %(leased_minor)s)
WHERE shard = %(shard)s AND batch_id = %(batch_id)s;

-- name: granted
-- What of a locked batch's cap was granted to a holder, and to all.
SELECT COALESCE(g.granted_minor, 0), b.spend_granted_minor
FROM batch b
LEFT JOIN spend_grant g ON g.shard = b.shard AND g.batch_id = b.batch_id AND g.holder = %(holder)s
WHERE b.shard = %(shard)s AND b.batch_id = %(batch_id)s;

-- name: grant
-- Grants a holder more, under the lock of the batch.
INSERT INTO spend_grant (shard, batch_id, holder, granted_minor)
VALUES (%(shard)s, %(batch_id)s, %(holder)s, %(more_minor)s)
ON DUPLICATE KEY UPDATE granted_minor = spend_grant.granted_minor + %(more_minor)s;

-- name: count_grant
-- Adds a grant to a locked batch, never above its cap; the rows matched are counted.
UPDATE batch SET spend_granted_minor = spend_granted_minor + %(more_minor)s
WHERE shard = %(shard)s AND batch_id = %(batch_id)s AND spend_granted_minor + %(more_minor)s <= spend_cap_minor;

-- name: ungranted
-- What of a batch's cap nobody has leased, without locks.
SELECT spend_cap_minor - spend_granted_minor FROM batch WHERE shard = %(shard)s AND batch_id = %(batch_id)s;
