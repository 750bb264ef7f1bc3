-- Marks of the guard: which worker has an entry's run, and which runs are over.
--   marks:      "<task id>/<run>" -> "<stage> <token> <worker>"; stage C: claimed, S: it has begun
--   mark_looks: the same -> instant in ms at which somebody looks whether that worker lives
--   done_even, done_odd: the same -> "", of runs that are over.  The two take turns, so that the
--               older can be dropped whole: a run is known for keep_ms at least, twice as long at
--               most.
-- Expects the locals: now, keep_ms, marks, mark_looks, done_even, done_odd.

local function read_mark(member)
  -- returns: stage, token, worker; or nil
  local value = redis.call('HGET', marks, member)
  if value then
    return string.match(value, '^(%u) (%S+) (.*)$')
  end
end

local function write_mark(member, stage, token, worker)
  redis.call('HSET', marks, member, stage .. ' ' .. token .. ' ' .. worker)
  redis.call('ZADD', mark_looks, text(now + keep_ms), member)
end

local function remove_mark(member)
  redis.call('ZREM', mark_looks, member)
  return redis.call('HDEL', marks, member)
end

local function is_over(member)
  local turn = math.floor(now / keep_ms)
  for _, key in ipairs({ done_even, done_odd }) do
    local marked = tonumber(redis.call('HGET', key, '') or -1)
    if marked >= turn - 1 and redis.call('HEXISTS', key, member) == 1 then
      return true
    end
  end
  return false
end

local function end_mark(member)
  -- the run is over
  local turn = math.floor(now / keep_ms)
  local key = turn % 2 == 0 and done_even or done_odd
  local marked = tonumber(redis.call('HGET', key, '') or -1)
  if marked ~= turn then
    if marked < turn then
      redis.call('UNLINK', key)
    end
    redis.call('HSET', key, '', text(turn))
    redis.call('PEXPIRE', key, text(keep_ms * 2))
  end
  redis.call('HSET', key, member, '')
  remove_mark(member)
end
