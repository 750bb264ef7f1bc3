-- The two ways out, and the schedule in which an entry waits for its own.
-- Expects the locals: schedule, outbound, and those of records.lua.

local function schedule_of(payload)
  return is_published(payload) and outbound or schedule
end

local function eta_of(id)
  -- returns: when the entry that waits in one of the two is due; or false
  return redis.call('ZSCORE', schedule, id) or redis.call('ZSCORE', outbound, id)
end
