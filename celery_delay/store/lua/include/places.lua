-- Where a live entry can be: in the schedule of its way, or kept from it.
-- Expects the locals: schedule, outbound, blocked, held, and those of sides.lua.

local function eta_of(id)
  -- returns: when the entry is due, whatever place it has; or false
  return redis.call('ZSCORE', schedule, id) or redis.call('ZSCORE', outbound, id)
    or redis.call('ZSCORE', blocked, id) or redis.call('ZSCORE', held, id)
    or redis.call('ZSCORE', gated, id)
end

local function take_away(...)
  for _, place in ipairs({ schedule, outbound, blocked, held }) do
    redis.call('ZREM', place, ...)
  end
  if redis.call('EXISTS', gated) == 1 then
    for _, id in ipairs({ ... }) do
      leave_gate(id)
    end
  end
end
