-- The two ways out, and the schedule in which an entry waits for its own.
-- Expects the locals: schedule, outbound, and those of records.lua.

local function schedule_of(payload)
  return is_published(payload) and outbound or schedule
end
