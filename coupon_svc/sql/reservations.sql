-- Statements of reservations and reversals. Lock order: leader_epoch, shard_owner, account_state, reservation, coupon rows
-- in key order, then appends. Rows of coupon_hold change only under the locks of their coupons.

-- name: get_reservation
-- One reservation, without a lock.
SELECT shard, caller, reservation_id, state, user_id, merchant_id, order_id, amount_minor, order_lines, settlement_held,
  reserve_hash, reserve_response, confirm_hash, confirm_response, expire_time, create_time, update_time
FROM reservation
WHERE shard = %(shard)s AND caller = %(caller)s AND reservation_id = %(reservation_id)s;

-- name: lock_reservations
-- Locks reservations that were seen to exist, in key order.
SELECT shard, caller, reservation_id, state, user_id, merchant_id, order_id, amount_minor, order_lines, settlement_held,
  reserve_hash, reserve_response, confirm_hash, confirm_response, expire_time, create_time, update_time
FROM reservation FORCE INDEX (PRIMARY) WHERE (shard, caller, reservation_id) IN %(keys)s
ORDER BY shard, caller, reservation_id FOR UPDATE;

-- name: owners_of_reservations
-- Whose reservations these are.
SELECT shard, user_id FROM reservation FORCE INDEX (PRIMARY) WHERE (shard, caller, reservation_id) IN %(keys)s;

-- name: expired_reservations
-- Reservations whose time is over and that nobody ended, the longest over first.
SELECT shard, caller, reservation_id FROM reservation FORCE INDEX (idx_state_expire)
WHERE state = 1 AND expire_time <= %(now)s ORDER BY expire_time LIMIT %(limit)s;

-- name: insert_reservation
-- Adds a reservation; a duplicate key means that somebody else was faster.
INSERT INTO reservation (shard, caller, reservation_id, state, user_id, merchant_id, order_id, amount_minor, order_lines,
  settlement_held, reserve_hash, reserve_response, confirm_hash, confirm_response, expire_time, create_time, update_time)
VALUES (%(shard)s, %(caller)s, %(reservation_id)s, %(state)s, %(user_id)s, %(merchant_id)s, %(order_id)s,
  %(amount_minor)s, %(order_lines)s, %(settlement_held)s, %(reserve_hash)s, %(reserve_response)s, %(confirm_hash)s,
  %(confirm_response)s, %(expire_time)s, %(create_time)s, %(update_time)s);

-- name: update_reservation
-- Stores what a locked reservation has become.
UPDATE reservation SET state = %(state)s, reserve_response = %(reserve_response)s, confirm_hash = %(confirm_hash)s,
  confirm_response = %(confirm_response)s, update_time = %(update_time)s
WHERE shard = %(shard)s AND caller = %(caller)s AND reservation_id = %(reservation_id)s;

-- name: unreleased_holds
-- Holds of coupons that did not end yet, whether expired or not; they change only under the locks of their coupons.
SELECT shard, caller, reservation_id, position, coupon_id, state, base_minor, deduction_minor, held_minor, expire_time,
  transaction_id
FROM coupon_hold FORCE INDEX (idx_coupon) WHERE (shard, coupon_id, state) IN %(keys)s
ORDER BY shard, coupon_id, expire_time;

-- name: holds_of_reservations
-- All holds that reservations made, in the order in which they apply.
SELECT shard, caller, reservation_id, position, coupon_id, state, base_minor, deduction_minor, held_minor, expire_time,
  transaction_id
FROM coupon_hold FORCE INDEX (PRIMARY) WHERE (shard, caller, reservation_id) IN %(keys)s
ORDER BY shard, caller, reservation_id, position;

-- name: insert_holds
-- Adds holds of locked coupons.
INSERT INTO coupon_hold (shard, caller, reservation_id, position, coupon_id, state, base_minor, deduction_minor,
  held_minor, expire_time, transaction_id)
VALUES (%(shard)s, %(caller)s, %(reservation_id)s, %(position)s, %(coupon_id)s, %(state)s, %(base_minor)s,
  %(deduction_minor)s, %(held_minor)s, %(expire_time)s, %(transaction_id)s);

-- name: update_hold
-- Stores what a hold of a locked coupon has become.
UPDATE coupon_hold SET state = %(state)s, deduction_minor = %(deduction_minor)s, transaction_id = %(transaction_id)s
WHERE shard = %(shard)s AND caller = %(caller)s AND reservation_id = %(reservation_id)s AND position = %(position)s;

-- name: update_held_coupons
-- As update_coupons, with the figures of unreleased holds.
UPDATE /*rows:shard,coupon_id:ascii,version_before,balance,status,version,last_hash,held,holds,hold_expires_at*/ d
STRAIGHT_JOIN coupon_info c FORCE INDEX (PRIMARY)
  ON c.shard = d.shard AND c.coupon_id = d.coupon_id AND c.version = d.version_before
SET c.balance = d.balance, c.status = d.status, c.version = d.version, c.last_hash = d.last_hash, c.held = d.held,
  c.holds = d.holds, c.hold_expires_at = d.hold_expires_at;

-- name: insert_transaction_lines
-- Adds what transactions took off the lines of their order.
INSERT INTO transaction_line (shard, transaction_id, position, line_id, amount_minor, deduction_minor)
VALUES (%(shard)s, %(transaction_id)s, %(position)s, %(line_id)s, %(amount_minor)s, %(deduction_minor)s);

-- name: transactions_made_by
-- Consumptions that a request made, in the order of their ids.
SELECT shard, transaction_id, coupon_id, user_id, merchant_id, order_id, amount_minor, deduction_minor,
  balance_after_minor, settlement_held, caller, request_id, consume_time, reservation_id, reverse_time
FROM coupon_transaction FORCE INDEX (idx_request)
WHERE request_id = %(request_id)s AND caller = %(caller)s AND shard = %(shard)s ORDER BY transaction_id;

-- name: given_back_of
-- Of these transactions those of which something was given back.
SELECT DISTINCT original_transaction_id FROM coupon_journal FORCE INDEX (idx_original_transaction)
WHERE original_transaction_id IN %(transaction_ids)s AND shard = %(shard)s;

-- name: mark_reversed
-- Notes when a transaction of a locked coupon was reversed.
UPDATE coupon_transaction SET reverse_time = %(reverse_time)s
WHERE shard = %(shard)s AND transaction_id = %(transaction_id)s AND reverse_time IS NULL;

-- name: replace_record
-- Puts another answer in the place of the one that was recorded for a request.
UPDATE request_record SET request_hash = %(request_hash)s, response = %(response)s, create_time = %(create_time)s,
  expire_time = %(expire_time)s
WHERE shard = %(shard)s AND caller = %(caller)s AND request_id = %(request_id)s;
