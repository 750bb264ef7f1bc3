-- Watched entries: handed off, and kept until a worker tells what has become of them.
--   watched:  "<task id>/<run>" -> instant in ms of the next look
--   watching: the same -> "<copies> <misses> <eta in ms> <end of the delivery tag>", line break,
--             record.  copies: how often it was sent again; misses: 1 if the last look found its
--             message nowhere.  The record keeps its template.
-- Expects the locals: mark, watched, watching, and those of clock.lua and records.lua.

local function watch_text(copies, misses, due, tag, record)
  return copies .. ' ' .. misses .. ' ' .. due .. ' ' .. tag .. '\n' .. record
end

local function read_watch(member)
  -- returns: copies, misses, due, tag, record; or nil
  local value = redis.call('HGET', watching, member)
  if value then
    return string.match(value, '^(%d+) (%d) (%d+) (%S+)\n(.*)$')
  end
end

local function unwatch(member)
  -- returns: whether it was watched
  local _, _, _, _, record = read_watch(member)
  if redis.call('ZREM', watched, member) + redis.call('HDEL', watching, member) == 0 then
    return false
  end
  local _, _, _, _, _, _, payload = read_head(record or '')
  if payload then
    release_template(payload)
  end
  return true
end

local looks, watches, unwatched = {}, {}, 0
local function begin_watch(entry, has_room)
  -- for an entry that is handed off now
  if not has_room then
    unwatched = unwatched + 1
    return
  end
  local member = entry.id .. '/' .. entry.run
  if entry.may_be_out then
    unwatch(member)
  end
  entry.is_watched = true
  looks[#looks + 1] = member
  watches[#watches + 1] = member
  watches[#watches + 1] = watch_text('0', '0', text(entry.due), entry.tag, entry.record)
end

local function finish_watches(next_look)
  -- writes what has gathered above
  if unwatched > 0 then
    redis.call('HINCRBY', mark, 'unwatched', unwatched)
  end
  if #looks > 0 then
    local scored = {}
    for _, member in ipairs(looks) do
      scored[#scored + 1] = text(next_look)
      scored[#scored + 1] = member
    end
    redis.call('ZADD', watched, unpack(scored))
    redis.call('HSET', watching, unpack(watches))
  end
end
