--- Hand due entries to their queues: the one step that takes them out and pushes their messages.
-- @include clock journal tombstones records messages
-- @allow-oom
-- KEYS: mark schedule entries blocked quarantine templates template_uses journal tombstones_even tombstones_odd
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
if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return { 'EPOCH', text(now) }
end
if latest_ms > 0 and now > latest_ms then
  return { 'JUMPED', text(now) }
end
if steal_ms > 0 then
  if now - tonumber(redis.call('HGET', mark, 'progress') or 0) <= steal_ms then
    return { 'STANDBY', text(now) }
  end
else
  redis.call('HSET', mark, 'progress', text(now))
end

local function next_due()
  local head = redis.call('ZRANGE', schedule, 0, 0, 'WITHSCORES')
  return head[2] or '-1'
end

local due = redis.call('ZRANGE', schedule, '-inf', text(now - hold_ms - steal_ms), 'BYSCORE',
  'LIMIT', 0, limit, 'WITHSCORES')
if #due == 0 then
  return { 'OK', text(now), next_due(), 0, 0, 0, 0, 0, '' }
end

-- Large records end the batch early: Redis serves nobody else meanwhile.
local MOST_BYTES, TOGETHER = 8 * 1024 * 1024, 50
local ids, records, bytes = {}, {}, 0
for first = 1, #due, 2 * TOGETHER do
  local some = {}
  for i = first, math.min(first + 2 * TOGETHER, #due + 1) - 1, 2 do
    some[#some + 1] = due[i]
  end
  for i, record in ipairs(redis.call('HMGET', entries, unpack(some))) do
    ids[#ids + 1] = some[i]
    records[#records + 1] = record
    bytes = bytes + #(record or '')
  end
  if bytes > MOST_BYTES then
    break
  end
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

local letters = {}
for letter in string.gmatch('ABCDEFGHIJKLMNOPQRSTUVWXYZ', '%u') do
  letters[#letters + 1] = letter
end
local epoch_text = text(epoch)
local expired, bad, stuck = {}, {}, {}
for i, id in ipairs(ids) do
  local entry = { id = id, due = tonumber(due[2 * i]), record = records[i] or '' }
  local why
  local codec, digest, run, version, deadline, expires, payload = read_head(entry.record)
  entry.run, entry.version, entry.payload = run or '0', version or '0', payload
  entry.deadline = tonumber(deadline or 0)
  if not records[i] then
    why = 'the record is missing'
  elseif not codec then
    why = 'the record is damaged'
  elseif codec ~= CODEC then
    -- written by a newer version: whoever understands it will move it
    entry.why = 'the record has the unknown version ' .. codec
    stuck[#stuck + 1] = entry
  elseif not is_whole(payload, digest) then
    why = 'the record is damaged'
  elseif tonumber(expires) > 0 and tonumber(expires) <= now then
    expired[#expired + 1] = entry
  else
    entry.template = template_of(payload)
    select_database(database) -- the entry before may have looked at a queue in another one
    local shape = template(entry.template)
    local queue = shape and queue_of(shape)
    if not shape then
      why = 'its template is missing or damaged'
    elseif queue.why then
      entry.why = queue.why
      stuck[#stuck + 1] = entry
    else
      local values = { i = id, r = run, d = text(entry.due), n = epoch_text, ['$'] = '' }
      local slot = 0
      for value in string.gmatch(payload, '\n([^\n]*)') do
        slot = slot + 1
        values[letters[slot] or slot] = value
      end
      local message = fill(shape, values)
      if not message then
        why = 'its values do not fit its template'
      else
        queue.messages[#queue.messages + 1] = message
        queue.entries[#queue.entries + 1] = entry
      end
    end
  end
  if why then
    entry.why = why
    bad[#bad + 1] = entry
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

local function line(entry, data)
  return entry.id .. '\t' .. entry.run .. '\t' .. entry.version .. '\t' .. text(entry.due) .. '\t' .. data
end

local leaving, buried_now, dispatched, uses, lag, moved = {}, {}, {}, {}, 0, 0
local function leave(entry)
  leaving[#leaving + 1] = entry.id
  if entry.deadline >= now then
    -- its add may still be repeated
    buried_now[#buried_now + 1] = 'g/' .. entry.id .. '/' .. entry.run
    buried_now[#buried_now + 1] = entry.version
  end
end
local function release(entry)
  local id = entry.template or template_of(entry.payload)
  if string.sub(id, 1, 1) ~= '=' then
    uses[id] = (uses[id] or 0) + 1
  end
end
for _, queue in pairs(queues) do
  for _, entry in ipairs(queue.entries) do
    if queue.failure then
      entry.why = queue.failure
      stuck[#stuck + 1] = entry
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
local expired_lines, bad_lines = {}, {}
for _, entry in ipairs(expired) do
  leave(entry)
  release(entry)
  expired_lines[#expired_lines + 1] = line(entry, '{}')
end
for _, entry in ipairs(bad) do
  -- parked, not gone: it keeps its template, so that it can be repaired
  redis.call('HSET', quarantine, entry.id, cjson.encode({ entry.why, text(entry.due), entry.record }))
  leave(entry)
  bad_lines[#bad_lines + 1] = line(entry, cjson.encode({ error = entry.why }))
end
local failure = ''
for _, entry in ipairs(stuck) do
  redis.call('ZADD', blocked, text(entry.due), entry.id)
  failure = entry.why
end
if #leaving > 0 then
  redis.call('HDEL', entries, unpack(leaving))
end
if #buried_now > 0 then
  bury(unpack(buried_now))
end
for id, count in pairs(uses) do
  redis.call('HINCRBY', template_uses, id, -count)
end
for _, id in ipairs(damaged) do
  -- the next add of this shape brings it again
  redis.call('HDEL', templates, id)
end
write_journal('DISPATCHED', dispatched)
write_journal('EXPIRED', expired_lines)
write_journal('QUARANTINED', bad_lines)
return { 'OK', text(now), next_due(), moved, lag, #expired, #bad, #stuck, failure }
