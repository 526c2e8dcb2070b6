-- What refunds read and write, in the lock order of queries.sql. They read under the locks of all coupons they concern, so
-- plain reads see the last word.

-- name: transactions_of_order
-- Consumptions of an order in this database, oldest first.
SELECT shard, transaction_id, coupon_id, user_id, merchant_id, order_id, amount_minor, deduction_minor,
  balance_after_minor, settlement_held, caller, request_id, consume_time, reservation_id, reverse_time
FROM coupon_transaction FORCE INDEX (idx_merchant_order)
WHERE merchant_id = %(merchant_id)s AND order_id = %(order_id)s
ORDER BY consume_time, transaction_id LIMIT %(limit)s;

-- name: given_back
-- What contra rows gave back of transactions so far, by transaction and kind.
SELECT original_transaction_id, kind, CAST(-SUM(deduction_minor) AS SIGNED), CAST(-SUM(order_amount_minor) AS SIGNED)
FROM coupon_journal FORCE INDEX (idx_original_transaction)
WHERE original_transaction_id IN %(transaction_ids)s GROUP BY original_transaction_id, kind;

-- name: paid_lines
-- How transactions spread over the lines of their order.
SELECT transaction_id, line_id, amount_minor, deduction_minor FROM transaction_line FORCE INDEX (PRIMARY)
WHERE (shard, transaction_id) IN %(keys)s ORDER BY shard, transaction_id, position;

-- name: order_amounts
-- What orders that reservations were made for amount to.
SELECT caller, reservation_id, amount_minor FROM reservation FORCE INDEX (PRIMARY)
WHERE (shard, caller, reservation_id) IN %(keys)s;

-- name: refunded_lines
-- What was given back of transactions so far, by line.
SELECT line_id, original_transaction_id, CAST(SUM(amount_minor) AS SIGNED)
FROM refund_line FORCE INDEX (idx_original_transaction)
WHERE original_transaction_id IN %(transaction_ids)s GROUP BY line_id, original_transaction_id;

-- name: refunded_cash
-- What was given back of an order in cash so far, by line.
SELECT l.line_id, CAST(SUM(l.amount_minor) AS SIGNED)
FROM refund r FORCE INDEX (idx_merchant_order)
STRAIGHT_JOIN refund_line l FORCE INDEX (PRIMARY) ON l.shard = r.shard AND l.refund_id = r.refund_id
WHERE r.merchant_id = %(merchant_id)s AND r.order_id = %(order_id)s AND r.shard = %(shard)s
  AND l.original_transaction_id = ''
GROUP BY l.line_id;

-- name: ended_from
-- The journal row that made a coupon EXPIRED: its kind, and the status before.
SELECT kind, status_before FROM coupon_journal FORCE INDEX (PRIMARY)
WHERE shard = %(shard)s AND coupon_id = %(coupon_id)s AND status_after = 5 AND status_before <> 5
ORDER BY seq DESC LIMIT 1;

-- name: store_refunded
-- Stores new states of locked coupons with their periods, each guarded by the version it was read with.
UPDATE /*rows:shard,coupon_id:ascii,version_before,balance,status,version,last_hash,expires_at*/ d
STRAIGHT_JOIN coupon_info c FORCE INDEX (PRIMARY)
  ON c.shard = d.shard AND c.coupon_id = d.coupon_id AND c.version = d.version_before
SET c.balance = d.balance, c.status = d.status, c.version = d.version, c.last_hash = d.last_hash,
  c.expires_at = d.expires_at;

-- name: insert_refund
-- Adds a refund.
INSERT INTO refund (shard, refund_id, merchant_id, order_id, caller, request_id, refund_time)
VALUES (%(shard)s, %(refund_id)s, %(merchant_id)s, %(order_id)s, %(caller)s, %(request_id)s, %(refund_time)s);

-- name: insert_refund_coupons
-- Adds what a refund gave back of each transaction.
INSERT INTO refund_coupon (shard, refund_id, original_transaction_id, coupon_id, amount_minor, replacement_coupon_id)
VALUES (%(shard)s, %(refund_id)s, %(original_transaction_id)s, %(coupon_id)s, %(amount_minor)s,
  %(replacement_coupon_id)s);

-- name: insert_refund_lines
-- Adds how a refund spreads over lines.
INSERT INTO refund_line (shard, refund_id, position, line_id, original_transaction_id, amount_minor)
VALUES (%(shard)s, %(refund_id)s, %(position)s, %(line_id)s, %(original_transaction_id)s, %(amount_minor)s);

-- name: refunds_of_transaction
-- Names of the refunds of a transaction.
SELECT refund_id FROM refund_coupon FORCE INDEX (idx_original_transaction)
WHERE original_transaction_id = %(transaction_id)s ORDER BY refund_id LIMIT %(limit)s;

-- name: refunds_of_request
-- Names of the refunds that a caller's request made in this database.
SELECT refund_id FROM refund FORCE INDEX (idx_request) WHERE request_id = %(request_id)s AND caller = %(caller)s
ORDER BY refund_time DESC LIMIT 1;

-- name: get_refunds
-- Refunds by id, oldest first.
SELECT shard, refund_id, merchant_id, order_id, caller, request_id, refund_time
FROM refund FORCE INDEX (PRIMARY) WHERE (shard, refund_id) IN %(keys)s ORDER BY refund_time, refund_id;

-- name: get_refund_coupons
-- What refunds gave back of each transaction.
SELECT refund_id, original_transaction_id, coupon_id, amount_minor, replacement_coupon_id
FROM refund_coupon FORCE INDEX (PRIMARY) WHERE (shard, refund_id) IN %(keys)s
ORDER BY shard, refund_id, original_transaction_id;

-- name: get_refund_lines
-- How refunds spread over lines.
SELECT refund_id, line_id, original_transaction_id, amount_minor
FROM refund_line FORCE INDEX (PRIMARY) WHERE (shard, refund_id) IN %(keys)s ORDER BY shard, refund_id, position;
