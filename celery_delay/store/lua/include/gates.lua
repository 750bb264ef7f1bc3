-- Gates: what keeps entries back that are due.  An entry whose gate is closed leaves the head of
-- the schedule, so that it stands in nobody's way, and comes back when the gate opens.  A gate is
-- "all", "task:NAME", "queue:NAME", "namespace:NAME" (pauses); "rate:task:NAME",
-- "rate:queue:NAME" (limits); "full:QUEUE".
--   gates: gate -> a letter and facts as JSON: "P" paused, "R" what has gathered is being
--          released, "L" a rate limit, "F" a full queue; the last two while entries wait there
-- Expects the locals: now, gates, and those of records.lua, sides.lua and limits.lua.

local PAUSED = 80

local closed, asks_namespace, openable = {}, false, false
local has_closed, has_limits = false, next(rates) ~= nil or next(most) ~= nil
local function look_at_gates()
  -- first of all, once a call
  local known = redis.call('HGETALL', gates)
  for i = 1, #known, 2 do
    if string.byte(known[i + 1]) == PAUSED then
      closed[known[i]], has_closed = true, true
      asks_namespace = asks_namespace or string.sub(known[i], 1, 10) == 'namespace:'
    else
      openable = true
    end
  end
end

local function pause_of(entry, shape)
  if closed.all then
    return 'all'
  end
  if shape.pause == nil then
    local task, queue = 'task:' .. shape.task, 'queue:' .. shape.queue_name
    shape.pause = closed[task] and task or closed[queue] and queue or false
  end
  if shape.pause or not asks_namespace then
    return shape.pause
  end
  local is_json, labels = pcall(cjson.decode, labels_of(entry.payload) or '{}')
  local name = is_json and type(labels) == 'table' and labels.namespace
  local gate = type(name) == 'string' and 'namespace:' .. name
  return gate and closed[gate] and gate
end

local valves = {}
local function valve(gate, letter, left)
  -- a limit, with how many may still pass, and the eta of the first that waits at it already
  local head = redis.call('ZRANGE', side_of(gate), 0, 0, 'WITHSCORES')[2]
  valves[gate] = { gate = gate, letter = letter, left = left, head = tonumber(head) or math.huge }
  return valves[gate]
end

local room_in -- function(shape, limit): how many its queue has room for; the script's own
local function valves_of(shape)
  if not shape.valves then
    shape.valves = {}
    for _, name in ipairs({ 'task:' .. shape.task, 'queue:' .. shape.queue_name }) do
      local gate = 'rate:' .. name
      if rates[name] then
        shape.valves[#shape.valves + 1] = valves[gate]
          or valve(gate, 'L', tokens_in(gate, rates[name]))
      end
    end
    local limit = most[shape.queue_name] or most['*']
    if limit then
      local gate = 'full:' .. shape.queue_name
      shape.valves[#shape.valves + 1] = valves[gate] or valve(gate, 'F', room_in(shape, limit))
    end
  end
  return shape.valves
end

local kept, kept_at, letter_of = 0, {}, {}
local function keep_at(gate, letter, entry)
  local there = kept_at[gate] or {}
  there[#there + 1] = text(entry.due)
  there[#there + 1] = entry.id
  kept_at[gate], letter_of[gate], kept = there, letter, kept + 1
  return true
end

local function is_kept_back(entry, shape)
  -- whether a gate is closed to a due entry, which then waits at it after finish_gates()
  local pause = has_closed and pause_of(entry, shape)
  if pause then
    return keep_at(pause, 'P', entry)
  end
  if not has_limits then
    return false
  end
  local passed = valves_of(shape)
  for _, one in ipairs(passed) do
    -- the earliest eta first: also those that wait there already
    if one.left < 1 or entry.due > one.head then
      return keep_at(one.gate, one.letter, entry)
    end
  end
  for _, one in ipairs(passed) do
    one.left = one.left - 1
  end
  return false
end

local function finish_gates()
  for gate, pairs_of_gate in pairs(kept_at) do
    redis.call('ZADD', gated, unpack(pairs_of_gate))
    redis.call('ZADD', side_of(gate), unpack(pairs_of_gate))
    local named = {}
    for i = 2, #pairs_of_gate, 2 do
      named[#named + 1] = pairs_of_gate[i]
      named[#named + 1] = gate
    end
    redis.call('HSET', gate_of, unpack(named))
    if letter_of[gate] ~= 'P' then
      redis.call('HSETNX', gates, gate, letter_of[gate] .. '{}')
      openable = true
    end
  end
  for gate, one in pairs(valves) do
    if one.left < math.huge then
      redis.call('HSET', buckets, gate, string.format('%.6f %.0f', one.left, now))
    end
  end
end
