--- Look for what was handed off and never begun; what is found nowhere twice is sent again.
-- @include clock journal records messages leading databases lists watching
-- @allow-oom
-- KEYS: mark lease entries claimed templates template_uses journal watched watching served
-- ARGV: now:int:ms journal_max:int:events epoch:int term:int limit:int:entries patience:int:ms most_copies:int longest:int:messages most_bytes:int:bytes database:int unacked:str endings:str traceparent:str rest:*
--   limit        so many entries are looked at
--   patience     so long after a look comes the next one
--   most_copies  an entry that was sent again so often is given up
--   longest, most_bytes  queues that hold more are not searched, and none of theirs is sent again
--   database     number of the DB in which the store lives
--   unacked      key of the broker's hash of messages that workers have, by delivery tag
--   traceparent  context of the span in which this is sent, or '': it goes into our header
--   endings      what stands behind a queue's key for each of its priorities, as a JSON list
--   rest = queues of which nothing is sent again
-- RETURNS: EPOCH | TERM | OK now next_look_ms looked sent missing unsearched spared given_up error
--     unwatched max_lag_ms, and per entry sent or given up: "S" or "G", member
--   next_look_ms is -1 when nothing is watched; missing: found nowhere for the first time;
--   unsearched: of queues too long to search; spared: of queues in rest, or that no worker serves
--   that reports; unwatched: how many were handed off without a watch since it was last told;
--   max_lag_ms: of what is sent, from its eta.
--   Queues' keys are not declared, so Redis Cluster refuses this script.

local refused = why_not_leading()
if refused then
  return refused
end
now = time_ms(now)
local spare = {}
for _, queue in ipairs(rest) do
  spare[queue] = true
end
local ends = cjson.decode(endings)
local sent, missing, unsearched, spared, given_up, failure, lag = 0, 0, 0, 0, 0, '', 0
local dispatch = traceparent ~= '' and ', "dispatch": "' .. traceparent .. '"' or ''
local told, lines = {}, {}

local function look_again(member)
  redis.call('ZADD', watched, text(now + patience), member)
end

local function note_misses(one, misses)
  if one.misses ~= misses then
    one.misses = misses
    redis.call('HSET', watching, one.member,
      watch_text(one.copies, misses, one.eta, one.tag, one.record))
  end
  look_again(one.member)
end

local function is_outdated(id, run)
  -- whether the entry, or the run that came from inside it, is in the store
  local record = redis.call('HGET', entries, id)
  if not record then
    local claim = redis.call('HGET', claimed, id)
    record = claim and string.match(claim, '^[^\n]*\n(.*)$')
  end
  local _, _, here = read_head(record or '')
  return here and (here == run or tonumber(here) == tonumber(run) + 1)
end

local function read_one(member)
  -- returns: what is known of a watched entry; nil if it needs no watch
  local id, run = string.match(member, '^(.*)/(%d+)$')
  local copies, misses, eta, tag, record = read_watch(member)
  local _, _, _, version, _, _, payload = read_head(record or '')
  local shape = payload and template(template_of(payload))
  if not shape or is_outdated(id, run) then
    unwatch(member)
    return nil
  end
  return { member = member, id = id, run = run, copies = tonumber(copies), misses = misses,
    eta = eta, due = tonumber(eta), tag = tag, record = record, version = version,
    payload = payload, shape = shape }
end

local queues, order = {}, {}
local function gather(one)
  local shape = one.shape
  local base = shape.queue
  for _, ending in ipairs(ends) do
    if ending ~= '' and string.sub(shape.queue, -#ending) == ending then
      base = string.sub(shape.queue, 1, -#ending - 1)
    end
  end
  local name = shape.database .. '/' .. base
  if not queues[name] then
    queues[name] = { base = base, shape = shape, entries = {} }
    order[#order + 1] = queues[name]
  end
  table.insert(queues[name].entries, one)
end

local function is_with_a_worker(one)
  -- the store's own DB is not selected
  for copy = 0, one.copies do
    local tag = one.id .. '.' .. one.run .. '.' .. one.tag .. (copy > 0 and '.w' .. copy or '')
    if redis.pcall('HEXISTS', unacked, tag) ~= 0 then
      return true -- also when that cannot be told
    end
  end
end

local function send(one)
  local copy = one.copies + 1
  local message = text_of(one, one.shape, one.tag .. '.w' .. copy, dispatch)
  select_database(one.shape.database)
  local answer = message and redis.pcall('LPUSH', one.shape.queue, message)
  select_database(database)
  if type(answer) ~= 'number' then
    failure = answer and answer.err or 'its values do not fit its template'
    return look_again(one.member)
  end
  sent = sent + 1
  lag = math.max(lag, now - one.due)
  one.copies, one.misses = copy, nil
  note_misses(one, '0')
  lines[#lines + 1] = one.id .. '\t' .. one.run .. '\t' .. one.version .. '\t' .. one.eta .. '\t'
    .. '{"again":' .. copy .. ',"reason":"sent again: it was found nowhere"}'
  told[#told + 1] = 'S'
  told[#told + 1] = one.member
end

local function judge(one, queue_name)
  if spare[queue_name] or not redis.call('HGET', served, queue_name) then
    spared = spared + 1
    look_again(one.member)
  elseif one.misses == '0' then
    missing = missing + 1
    note_misses(one, '1')
  elseif one.copies >= most_copies then
    given_up = given_up + 1
    unwatch(one.member)
    told[#told + 1] = 'G'
    told[#told + 1] = one.member
  else
    send(one)
  end
end

local function search(queue)
  local keys = {}
  for _, ending in ipairs(ends) do
    keys[#keys + 1] = queue.base .. ending
  end
  local standing, why = messages_in(queue.shape.database, keys, longest, most_bytes)
  local nowhere, elsewhere = {}, {}
  for _, one in ipairs(queue.entries) do
    local there = not standing or standing[one.member] or is_with_a_worker(one)
    table.insert(there and elsewhere or nowhere, one)
  end
  select_database(database)
  if not standing then
    unsearched = unsearched + #elsewhere
    failure = why ~= '' and why or failure
  end
  for _, one in ipairs(elsewhere) do
    note_misses(one, '0')
  end
  for _, one in ipairs(nowhere) do
    judge(one, queue.shape.queue_name)
  end
end

local due = redis.call('ZRANGE', watched, '-inf', text(now), 'BYSCORE', 'LIMIT', 0, limit)
for _, member in ipairs(due) do
  local one = read_one(member)
  if one then
    gather(one)
  end
end
for _, queue in ipairs(order) do
  search(queue)
end
write_journal('DISPATCHED', lines)
local unwatched_before = redis.call('HGET', mark, 'unwatched') or '0'
redis.call('HDEL', mark, 'unwatched')
local head = redis.call('ZRANGE', watched, 0, 0, 'WITHSCORES')
return { 'OK', text(now), head[2] or '-1', #due, sent, missing, unsearched, spared, given_up,
  failure, tonumber(unwatched_before), lag, unpack(told) }
