-- The two ways out, and the schedule in which an entry waits for its own.
-- Expects the locals: schedule, outbound, and those of records.lua.

local function schedule_of(payload)
  return is_published(payload) and outbound or schedule
end

local function heads_of_ways()
  -- returns: way -> when the first entry there is due
  local heads = {}
  for _, way in ipairs({ schedule, outbound }) do
    heads[way] = tonumber(redis.call('ZRANGE', way, 0, 0, 'WITHSCORES')[2]) or math.huge
  end
  return heads
end
