-- Releases a lock if it is still held under the caller's token.
-- KEYS[1] the lock
-- ARGV[1] the token that acquired it
-- Output: 1 released, 0 it ran out or is someone else's
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
