-- Decides on a batch of operations against sliding windows and counts them, all in one indivisible pass.
--
-- KEYS[1..] the record of each operation, in the order of the batch; then the windows, each once. All carry one hash
--   tag, so that a batch falls into one slot of a cluster.
-- ARGV[1] now in milliseconds; empty: the server's own clock, which every caller then shares
-- ARGV[2] how long a record is kept, in milliseconds
-- ARGV[3] the number of operations
-- ARGV[4] the steps, as numbers with spaces between (one argument, since a thousand small ones cost a millisecond): for
--   each operation the number of its steps, and for each step its effect (1 SPEND, 2 MARK, 3 WATCH), the ordinal of its
--   limit, the index in KEYS of its window
-- ARGV[5..] for each limit: its rule, its limit, window_ms, bucket_ms
-- Output: for each operation a string: "0" or "1" (1: replayed), then the rules that refused, joined by ","
--
-- A record is a string: the rules that refused, joined by ","; empty when allowed. It expires after ARGV[2].
-- A window is a hash: first millisecond of a bucket -> events in it; and a field "t" while it is tripped. It holds at
-- most ceil(window_ms / bucket_ms) + 1 buckets, and expires when its last bucket has gone.
-- When Redis is out of memory it refuses the first write, so a batch is stored whole or not at all.

local SPEND, MARK, WATCH = 1, 2, 3
local TRIPPED = 't'

local now_ms = tonumber(ARGV[1])
if not now_ms then
  local time = redis.call('TIME')
  now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local record_ttl_ms = ARGV[2]
local operations = tonumber(ARGV[3])


local limits = {}
for at = 5, #ARGV, 4 do
  limits[#limits + 1] = {
    rule = ARGV[at],
    limit = tonumber(ARGV[at + 1]),
    window_ms = tonumber(ARGV[at + 2]),
    bucket_ms = tonumber(ARGV[at + 3]),
  }
end

local next_number = string.gmatch(ARGV[4], '%d+')
local function take()
  return tonumber(next_number())
end

local windows = {}

-- Reads a window once per batch. Buckets that have gone are forgotten; a bucket of the future, left by a clock that has
-- stepped back since, moves into the present one, so that the number of buckets stays bounded.
local function read(index, limit)
  local window = windows[index]
  if window then
    return window
  end
  window = { limit = limit, count = 0, added = 0, gone = {}, tripped = false, dirty = false }
  local fields = redis.call('HGETALL', KEYS[index])
  local tripped = false
  for i = 1, #fields, 2 do
    local start_ms = tonumber(fields[i])
    if not start_ms then
      tripped = true
    elseif start_ms + limit.bucket_ms - 1 <= now_ms - limit.window_ms then
      window.gone[#window.gone + 1] = fields[i]
    else
      local events = tonumber(fields[i + 1])
      window.count = window.count + events
      if start_ms > now_ms then
        window.gone[#window.gone + 1] = fields[i]
        window.added = window.added + events
      end
    end
  end
  if tripped and window.count == 0 then
    window.gone[#window.gone + 1] = TRIPPED
  else
    window.tripped = tripped
  end
  windows[index] = window
  return window
end

local function count(window)
  window.count = window.count + 1
  window.added = window.added + 1
  window.dirty = true
end

local records = redis.call('MGET', unpack(KEYS, 1, operations))
local decisions = {}
for operation = 1, operations do
  local steps = {}
  for ordinal = 1, take() do
    steps[ordinal] = { effect = take(), limit = limits[take()], index = take() }
  end

  local record = records[operation]
  if record then
    decisions[operation] = '1' .. record
  else
    local refused_by = {}
    for _, step in ipairs(steps) do
      local window = read(step.index, step.limit)
      local refused
      if step.effect == SPEND then
        refused = window.count >= step.limit.limit
      elseif step.effect == MARK then
        count(window)
        window.tripped = window.tripped or window.count > step.limit.limit
        refused = window.tripped
      elseif step.effect == WATCH then
        refused = window.tripped
      end
      if refused then
        refused_by[#refused_by + 1] = step.limit.rule
      end
    end
    if #refused_by == 0 then
      for _, step in ipairs(steps) do
        if step.effect == SPEND then
          count(windows[step.index])
        end
      end
    end
    record = table.concat(refused_by, ',')
    redis.call('SET', KEYS[operation], record, 'PX', record_ttl_ms)
    decisions[operation] = '0' .. record
  end
end

for index, window in pairs(windows) do
  if window.dirty then
    local key, limit = KEYS[index], window.limit
    if #window.gone > 0 then
      redis.call('HDEL', key, unpack(window.gone))
    end
    local start_ms = now_ms - now_ms % limit.bucket_ms
    redis.call('HINCRBY', key, string.format('%.0f', start_ms), window.added)
    if window.tripped then
      redis.call('HSET', key, TRIPPED, 1)
    end
    redis.call('PEXPIRE', key, limit.window_ms + limit.bucket_ms)
  end
end

return decisions
