-- The fence of leaders: leader_epoch(job VARCHAR(64) PRIMARY KEY, epoch BIGINT UNSIGNED), a table of each database whose
-- service has work that a leader does.

-- name: raise_epoch
-- Tells the database of a new term; no row matches when a later one was there before, or none ever.
UPDATE leader_epoch SET epoch = %(epoch)s WHERE job = %(job)s AND epoch < %(epoch)s;

-- name: get_epoch
-- The latest term the database knows.
SELECT epoch FROM leader_epoch WHERE job = %(job)s;

-- name: insert_epoch
-- The first term of a job in this database.
INSERT INTO leader_epoch (job, epoch) VALUES (%(job)s, %(epoch)s);

-- name: hold_epoch
-- Holds the latest term until commit; a new leader waits, and then every later transaction of the old one is refused.
SELECT epoch FROM leader_epoch WHERE job = %(job)s LOCK IN SHARE MODE;
