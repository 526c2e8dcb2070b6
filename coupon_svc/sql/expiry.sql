-- The sweep of expired coupons. due_at is NULL for what needs none (migration 0004).

-- name: due_coupons
-- Due coupons of a shard behind a cursor, oldest first.
SELECT due_at, coupon_id, user_id FROM coupon_info FORCE INDEX (idx_due)
WHERE shard = %(shard)s AND due_at >= %(after_due)s AND due_at <= %(now)s
  AND (due_at > %(after_due)s OR coupon_id > %(after_id)s)
ORDER BY due_at, coupon_id LIMIT %(limit)s;

-- name: still_due
-- Which of the given coupons, locked before, are due.
SELECT coupon_id FROM coupon_info FORCE INDEX (PRIMARY) WHERE (shard, coupon_id) IN %(keys)s AND due_at <= %(now)s;
