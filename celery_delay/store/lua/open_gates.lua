--- Return entries to their schedule whose gate lets them pass now, a bounded number at a time.
-- @include clock records ways sides limits leading
-- @allow-oom
-- KEYS: mark lease schedule outbound entries gates gated gate_of buckets template_uses
-- ARGV: now:int:ms epoch:int term:int limit:int:entries probe:int:ms limits:str
--   probe  what is known of a queue's room is good for so long; then one entry goes and looks
-- RETURNS: EPOCH | TERM | OK returned wait_ms
--   wait_ms is how long until more may pass, -1 when nothing waits but at closed gates

now = time_ms(now)
local refused = why_not_leading()
if refused then
  return refused
end

-- when to ask again where the schedule is full of due entries, in ms
local SOON = 20

local function let_released(facts, waiting)
  -- each of these returns: how many may pass now, and in how many ms more of them
  local elapsed = math.max(0, now - facts.released)
  if elapsed >= facts.over then
    return waiting, 0
  end
  local gone = facts.total - waiting
  return math.floor(facts.total * elapsed / facts.over) - gone, facts.over / facts.total
end

local function let_by_rate(gate, waiting)
  local rate = rates[string.sub(gate, 6)]
  if not rate then
    return waiting, 0
  end
  local left = tokens_in(gate, rate)
  return math.floor(left), (1 - left % 1) / rate[1]
end

local function let_into_queue(gate, waiting)
  local name = string.sub(gate, 6)
  if not (most[name] or most['*']) then
    return waiting, 0
  end
  local left, at = string.match(redis.call('HGET', buckets, gate) or '', '^(%S+) (%d+)$')
  local age = left and now - tonumber(at) or probe
  if age < 0 or age >= probe then
    -- one goes and looks; nobody else does before it has told
    redis.call('HSET', buckets, gate, string.format('0 %.0f', now))
    return 1, SOON
  end
  local may = math.min(math.floor(tonumber(left)), waiting)
  if may > 0 then
    redis.call('HSET', buckets, gate, string.format('%.0f %s', tonumber(left) - may, at))
  end
  return may, probe - age
end

local room = {}
for _, way in ipairs({ schedule, outbound }) do
  -- Where a broker is slow, or away, what comes back with its early eta must not go in front of
  -- others again and again: a batch when all has gone that was due, a trickle before.
  local due = redis.call('ZCOUNT', way, '-inf', text(now))
  room[way] = due == 0 and limit or due < limit and math.max(1, math.floor(limit / 30)) or 0
end

local function let_pass(gate, count)
  -- returns: how many did
  local from = side_of(gate)
  local leaving = redis.call('ZRANGE', from, 0, count - 1, 'WITHSCORES')
  for i = 1, #leaving, 2 do
    local id = leaving[i]
    local _, _, _, _, _, _, payload = read_head(redis.call('HGET', entries, id) or '')
    local way = payload and schedule_of(payload) or schedule
    if room[way] < 1 then
      return (i - 1) / 2
    end
    room[way] = room[way] - 1
    redis.call('ZADD', way, leaving[i + 1], id)
    redis.call('ZREM', from, id)
    redis.call('ZREM', gated, id)
    redis.call('HDEL', gate_of, id)
  end
  return count
end

local open = {}
local known = redis.call('HGETALL', gates)
for i = 1, #known, 2 do
  if string.sub(known[i + 1], 1, 1) ~= 'P' then
    open[#open + 1] = { gate = known[i], letter = string.sub(known[i + 1], 1, 1),
      facts = string.sub(known[i + 1], 2) }
  end
end
local share = math.max(1, math.floor(limit / math.max(1, #open)))
local returned, wait = 0, math.huge
for _, one in ipairs(open) do
  local waiting = redis.call('ZCARD', side_of(one.gate))
  if waiting == 0 then
    redis.call('HDEL', gates, one.gate)
    if one.letter == 'F' then
      redis.call('HDEL', buckets, one.gate)
    end
  else
    local may, more_in
    if one.letter == 'R' then
      may, more_in = let_released(cjson.decode(one.facts), waiting)
    elseif one.letter == 'L' then
      may, more_in = let_by_rate(one.gate, waiting)
    else
      may, more_in = let_into_queue(one.gate, waiting)
    end
    local count = math.max(0, math.min(may, waiting, share))
    local passed = count > 0 and let_pass(one.gate, count) or 0
    returned = returned + passed
    if passed < math.min(may, waiting) then
      more_in = passed < count and SOON or 0
    end
    wait = math.min(wait, more_in)
  end
end
return { 'OK', text(returned), wait == math.huge and '-1' or text(math.max(0, math.ceil(wait))) }
