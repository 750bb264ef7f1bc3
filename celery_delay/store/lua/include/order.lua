-- The live entries of all places as one list, in the order of their eta and id.
-- Expects the locals: schedule, outbound, blocked, held, gated, after_ms, after_id, before_ms,
-- limit, state.

local function is_behind(one, other)
  -- byte by byte, as Redis sorts ids of one eta; Lua's own < goes by the server's locale
  for i = 1, math.min(#one, #other) do
    local a, b = string.byte(one, i), string.byte(other, i)
    if a ~= b then
      return a > b
    end
  end
  return #one > #other
end

local function first_rank(place)
  -- returns: the rank of the first one behind the position, by bisection among those of its eta
  local low = redis.call('ZCOUNT', place, '-inf', '(' .. text(after_ms))
  if after_id == '' then
    return low
  end
  local high = redis.call('ZCOUNT', place, '-inf', text(after_ms))
  while low < high do
    local middle = math.floor((low + high) / 2)
    if is_behind(redis.call('ZRANGE', place, middle, middle)[1], after_id) then
      high = middle
    else
      low = middle + 1
    end
  end
  return low
end

-- one list for each place, each in its order
local heads = {}
for i, place in ipairs({ held, gated, schedule, outbound, blocked }) do
  local letter = i == 1 and 'H' or i == 2 and 'G' or 'S'
  if state == '' or (state == 'H') == (letter == 'H') then
    local rank = first_rank(place)
    local ids = redis.call('ZRANGE', place, rank, rank + limit, 'WITHSCORES')
    if #ids > 0 then
      heads[#heads + 1] = { letter = letter, ids = ids, at = 1 }
    end
  end
end

local function next_head()
  local first, first_eta, first_id
  for _, head in ipairs(heads) do
    local id, eta = head.ids[head.at], tonumber(head.ids[head.at + 1])
    if id and eta <= before_ms
      and (not first or eta < first_eta or (eta == first_eta and is_behind(first_id, id))) then
      first, first_eta, first_id = head, eta, id
    end
  end
  return first, first_id, first_eta
end
