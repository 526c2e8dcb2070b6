-- What the reconciliation compares: coupons with their journals, draws with what was issued. It locks nothing.

-- name: has_holds
-- Whether this schema knows holds.
SELECT COUNT(*) FROM information_schema.columns
WHERE table_schema = DATABASE() AND table_name = 'coupon_info' AND column_name = 'held';

-- name: range_end
-- The last of the next coupons of a shard, so many at a time; NULL behind the last one.
SELECT MAX(coupon_id) FROM (
  SELECT coupon_id FROM coupon_info FORCE INDEX (PRIMARY)
  WHERE shard = %(shard)s AND coupon_id > %(above)s ORDER BY coupon_id LIMIT %(limit)s
) next_coupons;

-- name: booked_coupons
-- Coupons of a range as they are.
SELECT coupon_id, batch_id, status, CAST(balance * 100 AS SIGNED), version, user_id = 0 AND bound_user_id IS NOT NULL
FROM coupon_info FORCE INDEX (PRIMARY)
WHERE shard = %(shard)s AND coupon_id > %(above)s AND coupon_id <= %(upto)s;

-- name: booked_holds
-- What coupons of a range say is held of them, and what their unreleased holds say, where there is any.
SELECT c.coupon_id, CAST(c.held * 100 AS SIGNED), c.holds, COALESCE(h.held_minor, 0), COALESCE(h.holds, 0)
FROM coupon_info c FORCE INDEX (PRIMARY)
LEFT JOIN (
  SELECT coupon_id, SUM(held_minor) AS held_minor, COUNT(*) AS holds FROM coupon_hold FORCE INDEX (idx_coupon)
  WHERE shard = %(shard)s AND coupon_id > %(above)s AND coupon_id <= %(upto)s AND state = 1 GROUP BY coupon_id
) h ON h.coupon_id = c.coupon_id
WHERE c.shard = %(shard)s AND c.coupon_id > %(above)s AND c.coupon_id <= %(upto)s
  AND (c.holds > 0 OR h.holds IS NOT NULL);

-- name: journal_sums
-- What the journals of a range of coupons sum up to. Kinds: 1 issued, 2 imported, 4 activated, 5 consumed, 14 recalled;
-- statuses: 2 used, 5 expired, 6 refunded. The first row opens the coupon.
SELECT coupon_id, COUNT(*), MAX(seq), SUM(seq = 1 AND kind IN (1, 2)),
  SUM(seq = 1 AND transaction_id IS NULL AND original_transaction_id IS NULL AND kind IN (1, 2)),
  SUM(IF(seq = 1, amount_minor, 0)), SUM(IF(seq > 1 AND kind = 5, -amount_minor, 0)),
  SUM(IF(seq > 1 AND kind <> 5, amount_minor, 0)),
  SUM(status_after = 2 AND status_before <> 2), SUM(status_before IN (2, 6) AND status_after NOT IN (2, 6)),
  SUM(status_before <> 5 AND status_after = 5 AND kind <> 14) - SUM(status_before = 5 AND status_after <> 5),
  SUM(status_before <> 5 AND status_after = 5 AND kind = 14)
FROM coupon_journal FORCE INDEX (PRIMARY)
WHERE shard = %(shard)s AND coupon_id > %(above)s AND coupon_id <= %(upto)s AND kind < 20
GROUP BY coupon_id;

-- name: journal_ends
-- The last rows of the journals of a range of coupons.
SELECT j.coupon_id, j.status_after, j.balance_after_minor
FROM (
  SELECT coupon_id, MAX(seq) AS seq FROM coupon_journal FORCE INDEX (PRIMARY)
  WHERE shard = %(shard)s AND coupon_id > %(above)s AND coupon_id <= %(upto)s AND kind < 20 GROUP BY coupon_id
) e STRAIGHT_JOIN coupon_journal j FORCE INDEX (PRIMARY)
  ON j.shard = %(shard)s AND j.coupon_id = e.coupon_id AND j.seq = e.seq;

-- name: batch_draws
-- Batches of a shard with what they say was drawn, and the sum of their draws.
SELECT b.batch_id, b.issued_quantity, COALESCE(SUM(d.quantity), 0)
FROM batch b LEFT JOIN batch_draw d ON d.shard = b.shard AND d.batch_id = b.batch_id
WHERE b.shard = %(shard)s GROUP BY b.batch_id, b.issued_quantity;
