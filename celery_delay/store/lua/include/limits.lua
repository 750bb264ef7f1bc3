-- The limits that the settings put on the hand-off.
--   buckets: gate -> "<how many may pass> <as of ms>", of rate limits and full queues
-- Expects the locals: now, buckets, limits (as store/gating.py writes them; "" for none).

local rates, most, steps, rooms = {}, {}, { '' }, {}
if limits ~= '' then
  local said = cjson.decode(limits)
  rates, most, steps, rooms = said.rates, said.most, said.steps, said.rooms
end

local function tokens_in(gate, rate)
  -- returns: how many may pass now at a rate limit of so many a ms, and at most so many at once
  local left, at = string.match(redis.call('HGET', buckets, gate) or '', '^(%S+) (%d+)$')
  if not left then
    return rate[2]
  end
  return math.min(rate[2], tonumber(left) + math.max(0, now - tonumber(at)) * rate[1])
end
