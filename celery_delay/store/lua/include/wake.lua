-- Waking the leader, for a head of its schedules that is earlier than it knows.
-- Expects the local: wake.

local function wake_leader()
  -- a list of at most one token: kept until the leader looks, taken by one taker
  redis.call('LPUSH', wake, '1')
  redis.call('LTRIM', wake, 0, 0)
end
