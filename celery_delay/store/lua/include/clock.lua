-- The store's clock.  A test may pass an instant of its own; production passes 0.

local function text(number)
  -- tostring() rounds beyond 14 digits, which is less than the year 9999 in milliseconds
  return string.format('%.0f', number)
end

local function time_ms(given)
  if given > 0 then
    return given
  end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
