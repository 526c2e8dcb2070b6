-- The schema of one campaign database. It holds the shard fence; `shard` leads every primary key. Times are UTC.

-- Who may write a shard. Every write transaction reads its row LOCK IN SHARE MODE; whoever moves the shard updates it first.
CREATE TABLE IF NOT EXISTS shard_owner (
  shard SMALLINT UNSIGNED NOT NULL,
  epoch BIGINT UNSIGNED NOT NULL,
  state TINYINT UNSIGNED NOT NULL COMMENT '1 owned, 2 moving, 3 moved',
  PRIMARY KEY (shard)
) ENGINE = InnoDB;
