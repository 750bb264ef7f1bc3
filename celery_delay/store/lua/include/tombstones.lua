-- Tombstones: short-lived marks that an entry must not come (back).  They live in two
-- hashes that take turns, so that the older one can be dropped whole: a mark lives at
-- least tombstone_ms and at most twice as long.  When the clock has been set back, marks
-- from turns that are yet to come again live on into the turn in which the next is made.
-- Expects the locals: tombstones_even, tombstones_odd, tombstone_ms, now.
--   g/<task id>/<run>   gone: handed off while its add could still be repeated; = version
--   c/<task id>         cancelled: = "F" (an entry was found) or "N" (none was), " ",
--                       and the highest run that is refused
--   r/<task id>/<run>   refused: this run came after its cancellation; journalled once
--   k/<task id>/<run>   taken off its queue: = run
--   o/<operation>       what was answered to a change of entries, for its repeats

local standing -- the hashes whose marks still count; asked for once per call

local function tombstones_now()
  local turn = math.floor(now / tombstone_ms)
  local key = turn % 2 == 0 and tombstones_even or tombstones_odd
  local marked = tonumber(redis.call('HGET', key, '') or -1)
  if marked ~= turn then
    if marked < turn then
      redis.call('UNLINK', key)
    end
    redis.call('HSET', key, '', text(turn))
    redis.call('PEXPIRE', key, text(tombstone_ms * 2))
  end
  return key
end

local function bury(...)
  redis.call('HSET', tombstones_now(), ...)
  standing = nil
end

local NOTHING = {}

local function buried(field)
  -- returns: the values of the marks that stand, of both hashes
  if not standing then
    standing = {}
    local turn = math.floor(now / tombstone_ms)
    for _, key in ipairs({ tombstones_even, tombstones_odd }) do
      local marked = redis.call('HGET', key, '')
      if marked and tonumber(marked) >= turn - 1 then
        standing[#standing + 1] = key
      end
    end
  end
  local values = NOTHING
  for _, key in ipairs(standing) do
    local value = redis.call('HGET', key, field)
    if value then
      values = { value, values[1] }
    end
  end
  return values
end

local function gone(task_id, run)
  -- returns: the version of the entry that left; or -1
  local version = -1
  for _, value in ipairs(buried('g/' .. task_id .. '/' .. run)) do
    version = math.max(version, tonumber(value))
  end
  return version
end

local function cancelled(task_id)
  -- returns: "F" if an entry had been found, "N" if none was, or nil; highest refused run or -1
  local found, highest = nil, -1
  for _, value in ipairs(buried('c/' .. task_id)) do
    local kind, run = string.match(value, '^(%u) (%d+)$')
    found = found == 'F' and 'F' or kind
    highest = math.max(highest, tonumber(run))
  end
  return found, highest
end
