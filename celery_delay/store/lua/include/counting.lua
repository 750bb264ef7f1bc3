-- What a beat counts of the entries that it hands off: by template, and by how late they were.
--   counted   how many, by template
--   lags      how many, by the first bound that the lag does not exceed; one more for longer ones
-- Expects the locals: lag_bounds (in ms, ascending, separated by spaces; "": nobody counts), and
-- those of messages.lua.

local counted, lags, lag_bounds_ms, lag_sum = {}, {}, {}, 0
for bound in string.gmatch(lag_bounds, '%d+') do
  lag_bounds_ms[#lag_bounds_ms + 1] = tonumber(bound)
  lags[#lags + 1] = 0
end
lags[#lags + 1] = 0

local function count_all(some)
  -- they come in the order of their due times, more or less: each bucket is near the one before
  local bucket = #lags
  for _, entry in ipairs(some) do
    local lag = now - entry.due
    while bucket > 1 and lag <= lag_bounds_ms[bucket - 1] do
      bucket = bucket - 1
    end
    while bucket < #lags and lag > lag_bounds_ms[bucket] do
      bucket = bucket + 1
    end
    lags[bucket] = lags[bucket] + 1
    lag_sum = lag_sum + lag
    counted[entry.template] = (counted[entry.template] or 0) + 1
  end
end

local function counts()
  -- returns: the sum of the lags and the numbers by lag; task, queue, number of each template
  local routes = {}
  for id, number in pairs(counted) do
    local shape = template(id)
    routes[#routes + 1] = shape.task
    routes[#routes + 1] = shape.queue_name
    routes[#routes + 1] = number
  end
  return { lag_sum, unpack(lags) }, routes
end
