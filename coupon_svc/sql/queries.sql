-- Statements of the coupon service; reservations.sql has those of reservations. Lock order: shard_owner, account_state,
-- reservation, batch or coupon rows in key order, then appends.

-- name: hold_shards
-- Holds the owner rows of shards until commit; whoever moves a shard changes its row first.
SELECT shard, epoch, state FROM shard_owner WHERE shard IN %(shards)s ORDER BY shard LOCK IN SHARE MODE;

-- name: hold_accounts
-- Holds account rows until commit; whoever freezes an account changes its row first.
SELECT shard, user_id, status FROM account_state FORCE INDEX (PRIMARY)
WHERE (shard, user_id) IN %(users)s ORDER BY shard, user_id LOCK IN SHARE MODE;

-- name: account_statuses
-- Account rows as committed now, without locks.
SELECT shard, user_id, status FROM account_state FORCE INDEX (PRIMARY) WHERE (shard, user_id) IN %(users)s;

-- name: insert_accounts
-- Adds account rows; a row that came in between stays as it is.
INSERT INTO account_state (shard, user_id, status, version, update_time)
VALUES (%(shard)s, %(user_id)s, 1, 1, %(update_time)s)
ON DUPLICATE KEY UPDATE user_id = account_state.user_id;

-- name: recorded_requests
-- Answers given before to these requests.
SELECT shard, caller, request_id, request_hash, response FROM request_record FORCE INDEX (PRIMARY)
WHERE (shard, caller, request_id) IN %(keys)s;

-- name: insert_records
-- Records answers; a duplicate key means that a twin was faster.
INSERT INTO request_record (shard, caller, request_id, request_hash, response, create_time, expire_time)
VALUES (%(shard)s, %(caller)s, %(request_id)s, %(request_hash)s, %(response)s, %(create_time)s, %(expire_time)s);

-- name: purge_records
-- Forgets answers whose retention is over, a chunk at a time.
DELETE FROM request_record WHERE expire_time < %(now)s ORDER BY expire_time LIMIT %(limit)s;

-- name: lock_coupons
-- Locks coupons in key order.
SELECT coupon_id, shard, user_id, batch_id, terms_id, status, CAST(balance * 100 AS SIGNED), expires_at, version, last_hash,
  CAST(held * 100 AS SIGNED), holds, hold_expires_at
FROM coupon_info FORCE INDEX (PRIMARY) WHERE (shard, coupon_id) IN %(keys)s ORDER BY shard, coupon_id FOR UPDATE;

-- name: update_coupons
-- Stores new states of locked coupons, each guarded by the version it was read with; the rows matched are counted.
UPDATE /*rows:shard,coupon_id:ascii,version_before,balance,status,version,last_hash*/ d
STRAIGHT_JOIN coupon_info c FORCE INDEX (PRIMARY)
  ON c.shard = d.shard AND c.coupon_id = d.coupon_id AND c.version = d.version_before
SET c.balance = d.balance, c.status = d.status, c.version = d.version, c.last_hash = d.last_hash;

-- name: insert_coupons
-- Adds coupons.
INSERT INTO coupon_info (shard, coupon_id, user_id, balance, status, batch_id, terms_id, expires_at, version, last_hash,
  code_sealed, create_time)
VALUES (%(shard)s, %(coupon_id)s, %(user_id)s, %(balance)s, %(status)s, %(batch_id)s, %(terms_id)s, %(expires_at)s,
  %(version)s, %(last_hash)s, %(code_sealed)s, %(create_time)s);

-- name: bind_coupon
-- Promises a locked unactivated coupon to a user; never a second time.
UPDATE coupon_info FORCE INDEX (PRIMARY)
SET bound_user_id = %(user_id)s, bound_coupon_id = %(bound_coupon_id)s, bound_by = %(bound_by)s
WHERE shard = %(shard)s AND coupon_id = %(coupon_id)s AND bound_user_id IS NULL;

-- name: lock_stored
-- Locks one coupon and reads all of it.
SELECT coupon_id, shard, user_id, batch_id, terms_id, status, CAST(balance * 100 AS SIGNED), expires_at, version, last_hash,
  CAST(held * 100 AS SIGNED), holds, hold_expires_at, code_sealed, bound_user_id, bound_coupon_id, bound_by, create_time
FROM coupon_info FORCE INDEX (PRIMARY) WHERE shard = %(shard)s AND coupon_id = %(coupon_id)s FOR UPDATE;

-- name: get_coupons
-- Reads coupons whole, without locks.
SELECT coupon_id, shard, user_id, batch_id, terms_id, status, CAST(balance * 100 AS SIGNED), expires_at, version, last_hash,
  CAST(held * 100 AS SIGNED), holds, hold_expires_at, code_sealed, bound_user_id, bound_coupon_id, bound_by, create_time
FROM coupon_info FORCE INDEX (PRIMARY) WHERE (shard, coupon_id) IN %(keys)s;

-- name: list_coupons
-- A user's coupons, newest first.
SELECT coupon_id, shard, user_id, batch_id, terms_id, status, CAST(balance * 100 AS SIGNED), expires_at, version, last_hash,
  CAST(held * 100 AS SIGNED), holds, hold_expires_at, code_sealed, bound_user_id, bound_coupon_id, bound_by, create_time
FROM coupon_info FORCE INDEX (idx_user_status)
WHERE user_id = %(user_id)s AND status IN %(statuses)s AND shard = %(shard)s AND coupon_id < %(below)s
ORDER BY coupon_id DESC LIMIT %(limit)s;

-- name: coupon_facts
-- What never changes about coupons.
SELECT coupon_id, shard, user_id, batch_id, terms_id, bound_coupon_id
FROM coupon_info FORCE INDEX (PRIMARY) WHERE (shard, coupon_id) IN %(keys)s;

-- name: insert_journal
-- Appends journal rows.
INSERT INTO coupon_journal (shard, coupon_id, seq, month, kind, status_before, status_after, user_id, merchant_id,
  order_id, amount_minor, order_amount_minor, deduction_minor, balance_after_minor, transaction_id,
  original_transaction_id, settlement_held, lock_fence, caller, request_id, trace_id, event_time, key_id, prev_hash, hash,
  reason)
VALUES (%(shard)s, %(coupon_id)s, %(seq)s, %(month)s, %(kind)s, %(status_before)s, %(status_after)s, %(user_id)s,
  %(merchant_id)s, %(order_id)s, %(amount_minor)s, %(order_amount_minor)s, %(deduction_minor)s,
  %(balance_after_minor)s, %(transaction_id)s, %(original_transaction_id)s, %(settlement_held)s, %(lock_fence)s,
  %(caller)s, %(request_id)s, %(trace_id)s, %(event_time)s, %(key_id)s, %(prev_hash)s, %(hash)s, %(reason)s);

-- name: insert_outbox
-- Appends what is to be published: pointers at journal rows.
INSERT INTO outbox (shard, coupon_id, seq, month, create_time)
VALUES (%(shard)s, %(coupon_id)s, %(seq)s, %(month)s, %(create_time)s);

-- name: journal
-- A coupon's journal, oldest first.
SELECT shard, coupon_id, seq, kind, status_before, status_after, user_id, merchant_id, order_id, amount_minor,
  order_amount_minor, deduction_minor, balance_after_minor, transaction_id, original_transaction_id, settlement_held,
  lock_fence, caller, request_id, trace_id, event_time, key_id, prev_hash, hash, reason
FROM coupon_journal WHERE shard = %(shard)s AND coupon_id = %(coupon_id)s AND seq > %(above_seq)s
ORDER BY seq LIMIT %(limit)s;

-- name: insert_transactions
-- Adds consumptions.
INSERT INTO coupon_transaction (shard, transaction_id, coupon_id, user_id, merchant_id, order_id, amount_minor,
  deduction_minor, balance_after_minor, settlement_held, caller, request_id, consume_time, reservation_id)
VALUES (%(shard)s, %(transaction_id)s, %(coupon_id)s, %(user_id)s, %(merchant_id)s, %(order_id)s, %(amount_minor)s,
  %(deduction_minor)s, %(balance_after_minor)s, %(settlement_held)s, %(caller)s, %(request_id)s, %(consume_time)s,
  %(reservation_id)s);

-- name: get_transaction
-- One consumption by its id.
SELECT shard, transaction_id, coupon_id, user_id, merchant_id, order_id, amount_minor, deduction_minor,
  balance_after_minor, settlement_held, caller, request_id, consume_time, reservation_id, reverse_time
FROM coupon_transaction WHERE shard = %(shard)s AND transaction_id = %(transaction_id)s;

-- name: transactions_of_request
-- Consumptions that a caller's request made in this database.
SELECT shard, transaction_id, coupon_id, user_id, merchant_id, order_id, amount_minor, deduction_minor,
  balance_after_minor, settlement_held, caller, request_id, consume_time, reservation_id, reverse_time
FROM coupon_transaction FORCE INDEX (idx_request) WHERE request_id = %(request_id)s AND caller = %(caller)s
ORDER BY consume_time DESC LIMIT 1;

-- name: transactions_of_order
-- The latest consumption of an order in this database.
SELECT shard, transaction_id, coupon_id, user_id, merchant_id, order_id, amount_minor, deduction_minor,
  balance_after_minor, settlement_held, caller, request_id, consume_time, reservation_id, reverse_time
FROM coupon_transaction FORCE INDEX (idx_merchant_order)
WHERE merchant_id = %(merchant_id)s AND order_id = %(order_id)s
ORDER BY consume_time DESC, transaction_id DESC LIMIT 1;

-- name: insert_codes
-- Adds entries to the code index; a duplicate key means that the code is taken.
INSERT INTO code_index (shard, key_id, code_hmac, coupon_id, batch_id, made_by)
VALUES (%(shard)s, %(key_id)s, %(code_hmac)s, %(coupon_id)s, %(batch_id)s, %(made_by)s);

-- name: find_codes
-- Entries of the code index.
SELECT shard, key_id, code_hmac, coupon_id, batch_id, made_by FROM code_index FORCE INDEX (PRIMARY)
WHERE (shard, key_id, code_hmac) IN %(keys)s;

-- name: drop_code
-- Takes back an entry that an import made before it was refused.
DELETE FROM code_index
WHERE shard = %(shard)s AND key_id = %(key_id)s AND code_hmac = %(code_hmac)s AND made_by = %(made_by)s;

-- name: note_imported_lengths
-- Notes lengths of imported codes.
INSERT INTO imported_code_length (shard, code_length) VALUES (%(shard)s, %(code_length)s)
ON DUPLICATE KEY UPDATE code_length = imported_code_length.code_length;

-- name: imported_lengths
-- Lengths in which codes were imported.
SELECT DISTINCT code_length FROM imported_code_length;

-- name: ensure_counter
-- Adds a shard's counter of codes; one that is there stays as it is.
INSERT INTO code_counter (shard, code_length, next_counter) VALUES (%(shard)s, %(code_length)s, 0)
ON DUPLICATE KEY UPDATE next_counter = code_counter.next_counter;

-- name: lock_counter
-- Locks a shard's counter of codes.
SELECT next_counter FROM code_counter WHERE shard = %(shard)s AND code_length = %(code_length)s FOR UPDATE;

-- name: advance_counter
-- Moves a locked counter on.
UPDATE code_counter SET next_counter = %(next_counter)s WHERE shard = %(shard)s AND code_length = %(code_length)s;

-- name: insert_terms
-- Adds immutable terms.
INSERT INTO coupon_terms (shard, terms_id, batch_id, terms, create_time)
VALUES (%(shard)s, %(terms_id)s, %(batch_id)s, %(terms)s, %(create_time)s);

-- name: get_terms
-- Terms by id.
SELECT terms FROM coupon_terms WHERE shard = %(shard)s AND terms_id = %(terms_id)s;

-- name: insert_batch
-- Adds a batch.
INSERT INTO batch (shard, batch_id, terms_id, name, total_quantity, issued_quantity, code_length, block_scope, version,
  create_time, uses_per_user, spend_cap_minor, last_seq, last_hash)
VALUES (%(shard)s, %(batch_id)s, %(terms_id)s, %(name)s, %(total_quantity)s, 0, %(code_length)s, 0, 1, %(create_time)s,
  %(uses_per_user)s, %(spend_cap_minor)s, %(last_seq)s, %(last_hash)s);

-- name: get_batch
-- One batch, without locks.
SELECT batch_id, terms_id, name, total_quantity, issued_quantity, code_length, block_scope, create_time, uses_per_user,
  spend_cap_minor, recall_state, last_seq, last_hash
FROM batch WHERE shard = %(shard)s AND batch_id = %(batch_id)s;

-- name: lock_batch
-- Locks one batch.
SELECT batch_id, terms_id, name, total_quantity, issued_quantity, code_length, block_scope, create_time, uses_per_user,
  spend_cap_minor, recall_state, last_seq, last_hash
FROM batch WHERE shard = %(shard)s AND batch_id = %(batch_id)s FOR UPDATE;

-- name: set_block_scope
-- Changes what is blocked of a locked batch, and moves the head of its chain on.
UPDATE batch SET block_scope = %(block_scope)s, last_seq = %(last_seq)s, last_hash = %(last_hash)s, version = version + 1
WHERE shard = %(shard)s AND batch_id = %(batch_id)s;

-- name: get_draw
-- What a request drew from a batch before.
SELECT request_hash, quantity FROM batch_draw
WHERE shard = %(shard)s AND batch_id = %(batch_id)s AND caller = %(caller)s AND request_id = %(request_id)s;

-- name: insert_draw
-- Notes what a request draws from a locked batch.
INSERT INTO batch_draw (shard, batch_id, caller, request_id, request_hash, quantity, create_time)
VALUES (%(shard)s, %(batch_id)s, %(caller)s, %(request_id)s, %(request_hash)s, %(quantity)s, %(create_time)s);

-- name: count_draw
-- Adds a draw to a locked batch.
UPDATE batch SET issued_quantity = issued_quantity + %(quantity)s
WHERE shard = %(shard)s AND batch_id = %(batch_id)s;
