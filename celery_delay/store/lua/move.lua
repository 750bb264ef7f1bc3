--- Hand due entries to their queues: the one step that takes them out and pushes their messages.
-- @include clock journal tombstones records messages quarantine due
-- @allow-oom
-- KEYS: mark schedule entries blocked attempts quarantine templates template_uses journal tombstones_even tombstones_odd
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int limit:int:entries hold_ms:int:ms steal_ms:int:ms latest_ms:int:ms database:int
--   hold_ms   entries due less than this long ago are held back (0 in normal operation)
--   steal_ms  0 for the leader; else only entries overdue by more than this are taken, and only
--             while the leader's progress mark is older than this
--   latest_ms nothing is moved when the time is later: the clock has jumped; 0 for any time
--   database  number of the DB in which the store lives
-- RETURNS: EPOCH now | STANDBY now | JUMPED now
--   | OK now next_due_ms moved max_lag_ms expired quarantined blocked error
--   next_due_ms is -1 when nothing waits.  Queues' keys come from the templates and are not
--   declared, so Redis Cluster refuses this script.

now = time_ms(now)
local refused = refusal('progress')
if refused then
  return refused
end

local due = due_entries(schedule, now - hold_ms - steal_ms, limit)
if #due == 0 then
  return { 'OK', text(now), next_due(schedule), 0, 0, 0, 0, 0, '' }
end

-- Checks first: nothing is written until each entry has its place to go.
local selected = database
local function select_database(number)
  -- returns: an error's text; or nothing
  if number ~= selected then
    local err = redis.pcall('SELECT', number).err
    if err then
      return err
    end
    selected = number
  end
end

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

local ids = {}
for i, entry in ipairs(due) do
  ids[i] = entry.id
  select_database(database) -- the entry before may have looked at a queue in another one
  local shape = shape_of_fit(entry)
  local queue = shape and queue_of(shape)
  if queue and queue.why then
    set_aside(entry, queue.why)
  elseif queue then
    local message = message_of(entry, shape, epoch)
    if message then
      queue.messages[#queue.messages + 1] = message
      queue.entries[#queue.entries + 1] = entry
    end
  end
end
select_database(database)

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
for _, queue in pairs(queues) do
  for _, entry in ipairs(queue.entries) do
    if queue.failure then
      set_aside(entry, queue.failure)
    else
      leave(entry)
      release(entry)
      moved = moved + 1
      lag = math.max(lag, now - entry.due)
      if journal_max > 0 then
        dispatched[#dispatched + 1] = line(entry, '{"lag_ms":' .. text(now - entry.due) .. '}')
      end
    end
  end
end
local failure = finish()
write_journal('DISPATCHED', dispatched)
return { 'OK', text(now), next_due(schedule), moved, lag, #expired, #bad, #stuck, failure }
