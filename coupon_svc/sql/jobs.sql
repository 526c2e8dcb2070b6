-- Statements of jobs, imports, exports and the recovery of activations. Leases go by the clock of the database, so that
-- processes need not agree on the time.

-- name: insert_job
-- Adds a job whose lease ends after lease_ms; -1 leaves it to whoever comes first.
INSERT INTO job (shard, job_id, kind, state, phase, direct, batch_id, user_id, caller, request_id, request_hash, trace_id,
  total_count, done_count, error, line_error_count, lease_holder, lease_until, attempts, create_time)
VALUES (%(shard)s, %(job_id)s, %(kind)s, 1, %(phase)s, %(direct)s, %(batch_id)s, %(user_id)s, %(caller)s, %(request_id)s,
  %(request_hash)s, %(trace_id)s, %(total_count)s, 0, '', 0, %(lease_holder)s,
  UTC_TIMESTAMP(3) + INTERVAL %(lease_ms)s * 1000 MICROSECOND, 0, %(create_time)s);

-- name: insert_job_lines
-- Adds the sealed lines of an import.
INSERT INTO job_lines (shard, job_id, chunk, sealed) VALUES (%(shard)s, %(job_id)s, %(chunk)s, %(sealed)s);

-- name: count_open_jobs
-- Jobs of a caller that are under way and that no call waits for, counted up to a limit.
SELECT COUNT(*) FROM (SELECT 1 AS one FROM job FORCE INDEX (idx_caller)
WHERE caller = %(caller)s AND state = 1 AND shard = %(shard)s AND direct = 0 LIMIT %(limit)s) AS counted;

-- name: get_job
-- One job.
SELECT job_id, kind, state, phase, direct, batch_id, user_id, caller, request_id, request_hash, trace_id, total_count,
  done_count, error, line_error_count, attempts, create_time, finish_time
FROM job WHERE shard = %(shard)s AND job_id = %(job_id)s;

-- name: due_jobs
-- Running jobs that nobody holds, those that wait longest first.
SELECT job_id, direct FROM job FORCE INDEX (idx_due)
WHERE state = 1 AND lease_until < UTC_TIMESTAMP(3) AND direct >= %(direct)s ORDER BY lease_until LIMIT %(limit)s;

-- name: take_job
-- Takes a running job that nobody holds.
UPDATE job SET lease_holder = %(holder)s, lease_until = UTC_TIMESTAMP(3) + INTERVAL %(lease_ms)s * 1000 MICROSECOND,
  attempts = attempts + 1
WHERE shard = %(shard)s AND job_id = %(job_id)s AND state = 1 AND lease_until < UTC_TIMESTAMP(3);

-- name: advance_job
-- Notes progress and renews the lease of who holds the job.
UPDATE job SET phase = %(phase)s, done_count = %(done_count)s, attempts = 0,
  lease_until = UTC_TIMESTAMP(3) + INTERVAL %(lease_ms)s * 1000 MICROSECOND
WHERE shard = %(shard)s AND job_id = %(job_id)s AND state = 1 AND lease_holder = %(holder)s;

-- name: note_chunk_done
-- Raises the progress of a job and renews the lease of who holds it.
UPDATE job SET done_count = GREATEST(done_count, %(done_count)s), attempts = 0,
  lease_until = UTC_TIMESTAMP(3) + INTERVAL %(lease_ms)s * 1000 MICROSECOND
WHERE shard = %(shard)s AND job_id = %(job_id)s AND state = 1 AND lease_holder = %(holder)s;

-- name: insert_job_coupons
-- Notes what a chunk made; whoever made it before noted the same.
INSERT INTO job_coupons (shard, job_id, chunk, coupon_ids) VALUES (%(shard)s, %(job_id)s, %(chunk)s, %(coupon_ids)s)
ON DUPLICATE KEY UPDATE chunk = job_coupons.chunk;

-- name: let_job_go
-- Gives a lease back, to be taken after a while.
UPDATE job SET lease_until = UTC_TIMESTAMP(3) + INTERVAL %(retry_in_ms)s * 1000 MICROSECOND
WHERE shard = %(shard)s AND job_id = %(job_id)s AND state = 1 AND lease_holder = %(holder)s;

-- name: begin_undo
-- Notes why a job fails.
UPDATE job SET phase = 4, error = %(error)s, line_error_count = %(line_error_count)s, attempts = 0,
  lease_until = UTC_TIMESTAMP(3) + INTERVAL %(lease_ms)s * 1000 MICROSECOND
WHERE shard = %(shard)s AND job_id = %(job_id)s AND state = 1 AND lease_holder = %(holder)s;

-- name: insert_line_errors
-- Notes what is wrong with lines; whoever checked them before noted the same.
INSERT INTO job_line_error (shard, job_id, line, field, reason, problem)
VALUES (%(shard)s, %(job_id)s, %(line)s, %(field)s, %(reason)s, %(problem)s)
ON DUPLICATE KEY UPDATE line = job_line_error.line;

-- name: finish_job
-- Ends a job.
UPDATE job SET state = %(state)s, done_count = %(done_count)s, finish_time = %(finish_time)s
WHERE shard = %(shard)s AND job_id = %(job_id)s AND state = 1 AND lease_holder = %(holder)s;

-- name: drop_job_lines
-- Forgets the lines of a job that ended.
DELETE FROM job_lines WHERE shard = %(shard)s AND job_id = %(job_id)s;

-- name: forget_request
-- Forgets the record of a call that was refused after all, so that it can be made again.
DELETE FROM request_record
WHERE shard = %(shard)s AND caller = %(caller)s AND request_id = %(request_id)s;

-- name: job_lines
-- The sealed lines of a chunk.
SELECT sealed FROM job_lines WHERE shard = %(shard)s AND job_id = %(job_id)s AND chunk = %(chunk)s;

-- name: done_chunks
-- Chunks whose coupons are noted.
SELECT chunk FROM job_coupons WHERE shard = %(shard)s AND job_id = %(job_id)s;

-- name: job_coupons
-- What chunks of a job made.
SELECT chunk, coupon_ids FROM job_coupons
WHERE shard = %(shard)s AND job_id = %(job_id)s AND chunk >= %(first_chunk)s ORDER BY chunk LIMIT %(limit)s;

-- name: line_errors
-- What is wrong with lines of a job.
SELECT line, field, reason, problem FROM job_line_error
WHERE shard = %(shard)s AND job_id = %(job_id)s AND line > %(above_line)s ORDER BY line LIMIT %(limit)s;

-- name: ensure_gates
-- Adds gates that are filling; those that are there stay as they are.
INSERT INTO import_gate (shard, made_by, state, change_time) VALUES (%(shard)s, %(made_by)s, 1, %(change_time)s)
ON DUPLICATE KEY UPDATE state = import_gate.state;

-- name: hold_gates
-- Holds gates until commit; whoever opens or undoes an import changes them first.
SELECT state FROM import_gate FORCE INDEX (PRIMARY)
WHERE (shard, made_by) IN %(keys)s ORDER BY shard, made_by LOCK IN SHARE MODE;

-- name: set_gates
-- Sets gates, whether they are there or not.
INSERT INTO import_gate (shard, made_by, state, change_time)
VALUES (%(shard)s, %(made_by)s, %(state)s, %(change_time)s)
ON DUPLICATE KEY UPDATE state = VALUES(state), change_time = VALUES(change_time);

-- name: purge_gates
-- Forgets gates of imports that ended long ago, a chunk at a time; codes without a gate can be seen.
DELETE FROM import_gate WHERE change_time < %(before)s AND state <> 1 ORDER BY change_time LIMIT %(limit)s;

-- name: drop_claims
-- Takes back index entries that an import made before it was undone.
DELETE c FROM /*rows:shard,key_id:ascii,code_hmac,made_by*/ d
STRAIGHT_JOIN code_index c FORCE INDEX (PRIMARY)
  ON c.shard = d.shard AND c.key_id = d.key_id AND c.code_hmac = d.code_hmac AND c.made_by = d.made_by;

-- name: lower_draw
-- Lowers what a request drew from a locked batch.
UPDATE batch_draw SET quantity = %(kept)s
WHERE shard = %(shard)s AND batch_id = %(batch_id)s AND caller = %(caller)s AND request_id = %(request_id)s;

-- name: code_counters
-- Counters of codes, without locks.
SELECT shard, next_counter FROM code_counter FORCE INDEX (PRIMARY)
WHERE shard IN %(shards)s AND code_length = %(code_length)s;

-- name: insert_mark
-- Notes an activation.
INSERT INTO activation_mark (shard, coupon_id, mark_time) VALUES (%(shard)s, %(coupon_id)s, %(mark_time)s);

-- name: delete_mark
-- Forgets an activation.
DELETE FROM activation_mark WHERE shard = %(shard)s AND coupon_id = %(coupon_id)s;

-- name: old_marks
-- Activations that were marked before a time, oldest first.
SELECT coupon_id FROM activation_mark FORCE INDEX (idx_time)
WHERE mark_time < %(before)s ORDER BY mark_time LIMIT %(limit)s;

-- name: batch_coupons_of_shard
-- Coupons of a batch in one shard. One that got its lasting id since shows under that one.
SELECT coupon_id, shard, user_id, batch_id, terms_id, status, CAST(balance * 100 AS SIGNED), expires_at, version, last_hash,
  CAST(held * 100 AS SIGNED), holds, hold_expires_at, code_sealed, bound_user_id, bound_coupon_id, bound_by, create_time
FROM coupon_info FORCE INDEX (idx_batch)
WHERE shard = %(shard)s AND batch_id = %(batch_id)s AND coupon_id > %(above)s
  AND (bound_coupon_id IS NULL OR status = 1)
ORDER BY coupon_id LIMIT %(limit)s;

-- name: batch_coupons_of_shards
-- Coupons of a batch in some shards, shard by shard. One that got its lasting id since shows under that one.
SELECT coupon_id, shard, user_id, batch_id, terms_id, status, CAST(balance * 100 AS SIGNED), expires_at, version, last_hash,
  CAST(held * 100 AS SIGNED), holds, hold_expires_at, code_sealed, bound_user_id, bound_coupon_id, bound_by, create_time
FROM coupon_info FORCE INDEX (idx_batch)
WHERE shard IN %(shards)s AND batch_id = %(batch_id)s AND (bound_coupon_id IS NULL OR status = 1)
ORDER BY shard, coupon_id LIMIT %(limit)s;

-- name: last_export
-- The last row of a batch's export journal.
SELECT seq, hash FROM code_export WHERE shard = %(shard)s AND batch_id = %(batch_id)s ORDER BY seq DESC LIMIT 1;

-- name: insert_export
-- Appends to a batch's export journal.
INSERT INTO code_export (shard, batch_id, seq, job_id, caller, subject, ip, masked, line_count, first_coupon_id,
  last_coupon_id, trace_id, event_time, key_id, prev_hash, hash)
VALUES (%(shard)s, %(batch_id)s, %(seq)s, %(job_id)s, %(caller)s, %(subject)s, %(ip)s, %(masked)s, %(line_count)s,
  %(first_coupon_id)s, %(last_coupon_id)s, %(trace_id)s, %(event_time)s, %(key_id)s, %(prev_hash)s, %(hash)s);
