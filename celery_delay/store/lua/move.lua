--- Hand due entries to their queues: the one step that takes them out and pushes their messages.
-- @include clock journal tombstones records messages quarantine keys unique sides limits gates due looking databases counting watching
-- @allow-oom
-- KEYS: mark schedule entries blocked gates gated gate_of buckets attempts quarantine templates template_uses journal tombstones_even tombstones_odd uniques unique_ends watched watching
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int limit:int:entries hold_ms:int:ms steal_ms:int:ms latest_ms:int:ms database:int limits:str lag_bounds:str traceparent:str watch_ms:int:ms watch_most:int:entries
--   hold_ms   entries due less than this long ago are held back (0 in normal operation)
--   steal_ms  0 for the leader; else only entries overdue by more than this are taken, and only
--             while the leader's progress mark is older than this
--   latest_ms nothing is moved when the time is later: the clock has jumped; 0 for any time
--   database  number of the DB in which the store lives
--   limits    see include/limits.lua
--   lag_bounds  see include/counting.lua
--   traceparent  context of the span of this hand-off, or '': it goes into our header
--   watch_ms  what is moved is watched, and looked for so much later; 0: it is not
--   watch_most  so many are watched at once
-- RETURNS: EPOCH now | STANDBY now | JUMPED now
--   | OK now next_due_ms moved max_lag_ms expired quarantined blocked error gated openable lags routes
--   next_due_ms is -1 when nothing waits; openable is 1 when what waits at some gate may pass
--   before anybody opens it; lags and routes are those of counts(), for whoever counts and if
--   any was moved.  Queues' keys come from the templates and are not
--   declared, so Redis Cluster refuses this script.

now = time_ms(now)
if traceparent ~= '' then
  dispatch = ', "dispatch": "' .. traceparent .. '"'
end
local refused = refusal('progress')
if refused then
  return refused
end

-- Checks first: nothing is written until each entry has its place to go.
local queues = {}
local function queue_of(shape)
  if shape.goes_to then
    return shape.goes_to
  end
  local key = shape.database .. '/' .. shape.queue
  if not queues[key] then
    local why = select_database(shape.database)
    if not why then
      local kind = redis.pcall('TYPE', shape.queue)
      why = kind.err
      if not why and kind.ok ~= 'list' and kind.ok ~= 'none' then
        why = 'the key is not a list but a ' .. kind.ok
      end
    end
    why = why and shape.queue .. ' in DB ' .. text(shape.database) .. ': ' .. why
    queues[key] = { shape = shape, why = why, messages = {}, entries = {} }
  end
  shape.goes_to = queues[key]
  return shape.goes_to
end

room_in = function(shape, limit)
  local base, long = shape.queue, 0
  for _, step in ipairs(steps) do
    if step ~= '' and string.sub(shape.queue, -#step) == step then
      base = string.sub(shape.queue, 1, -#step - 1)
    end
  end
  if not select_database(shape.database) then
    for _, step in ipairs(steps) do
      local length = redis.pcall('LLEN', base .. step)
      long = long + (type(length) == 'number' and length or 0)
    end
  end
  select_database(database)
  return limit - long
end

local any_out = redis.call('HLEN', attempts) > 0
local ids = each_due(schedule, now - hold_ms - steal_ms, limit, function(entry, shape)
  -- a beat may have published it before, when there was no way for the move
  entry.may_be_out = any_out and redis.call('HEXISTS', attempts, entry.id) == 1
  local queue = queue_of(shape)
  select_database(database)
  if queue.why then
    set_aside(entry, queue.why)
    return
  end
  local message = message_of(entry, shape, epoch)
  if message then
    queue.messages[#queue.messages + 1] = message
    queue.entries[#queue.entries + 1] = entry
  end
end)
if #ids == 0 then
  return { 'OK', text(now), next_due(schedule), 0, 0, 0, 0, 0, '', 0, openable and 1 or 0 }
end

-- ZREM before LPUSH: on a full Redis the removal goes through, and with it all that follows.
redis.call('ZREM', schedule, unpack(ids))
for _, queue in pairs(queues) do
  if #queue.messages > 0 then
    select_database(queue.shape.database)
    local answer = redis.pcall('LPUSH', queue.shape.queue, unpack(queue.messages))
    if type(answer) == 'table' and answer.err then
      queue.failure = answer.err
    elseif queue.shape.expires ~= '0' then
      for _, key in ipairs(queue.shape.expiring) do
        redis.pcall('PEXPIRE', key, queue.shape.expires)
      end
    end
  end
end
select_database(database)

local dispatched, lag, moved = {}, 0, 0
local room = watch_ms > 0 and watch_most - redis.call('ZCARD', watched) or 0
for _, queue in pairs(queues) do
  if lag_bounds ~= '' and not queue.failure then
    count_all(queue.entries)
  end
  for _, entry in ipairs(queue.entries) do
    if queue.failure then
      set_aside(entry, queue.failure)
    else
      leave(entry)
      if watch_ms > 0 then
        begin_watch(entry, moved < room)
      end
      release(entry, true)
      moved = moved + 1
      lag = math.max(lag, now - entry.due)
      if journal_max > 0 then
        dispatched[#dispatched + 1] = line(entry, '{"lag_ms":' .. text(now - entry.due) .. '}')
      end
    end
  end
end
local failure = finish()
finish_watches(now + watch_ms)
write_journal('DISPATCHED', dispatched)
local by_lag, routes
if lag_bounds ~= '' and moved > 0 then
  by_lag, routes = counts()
end
return { 'OK', text(now), next_due(schedule), moved, lag, #expired, #bad, #stuck, failure, kept,
  openable and 1 or 0, by_lag, routes }
