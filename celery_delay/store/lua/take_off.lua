--- Take a task's message off its queue, where no worker has seen it yet.
-- @include clock journal tombstones databases timely records watching
-- @allow-oom
-- KEYS: mark templates template_uses journal tombstones_even tombstones_odd watched watching
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int deadline:int:ms operation:str task_id:str run:int database:int longest:int:messages most_bytes:int:bytes data:str rest:*
--   epoch       0: any
--   deadline    until when this call may be repeated; an attempt that arrives later does nothing
--   operation   names this call; a repeat gets the answer of the first attempt
--   run         0: not known; else the run that the caller believes to be on a queue
--   database    number of the DB in which the store lives
--   longest     lists with more messages than this are not searched
--   most_bytes  so much is read of all lists together
--   data        who and why, as JSON, for the journal
--   rest = (DB number, key) pairs: lists to search beside those of the shard's templates
-- RETURNS: EPOCH now | LATE now | TAKEN now run message ("" if an earlier call took it)
--   | DOUBTFUL now (it is there, but may have run before) | MISSED now unsearched error
--   The lists' keys are not declared, so Redis Cluster refuses this script.

now = time_ms(now)
local untimely = why_untimely()
if untimely then
  return { untimely, text(now) }
end
local taken_before = buried('o/' .. operation)[1]
if not taken_before and run > 0 then
  taken_before = buried('k/' .. task_id .. '/' .. text(run))[1]
end
if taken_before then
  return { 'TAKEN', text(now), taken_before, '' }
end

local lists, listed = {}, {}
local function add_list(number, key)
  local name = (number or '') .. '/' .. (key or '')
  if number and tonumber(number) >= 0 and not listed[name] then
    listed[name] = true
    lists[#lists + 1] = { database = tonumber(number), key = key }
  end
end
local shapes = redis.call('HGETALL', templates)
for i = 2, #shapes, 2 do
  add_list(string.match(shapes[i], '^%S+\n(%-?%d+)\n([^\n]+)\n'))
end
for i = 1, #rest, 2 do
  add_list(rest[i], rest[i + 1])
end

local function message_for(id, stored)
  -- returns: the message, decoded, if it is one of that task, and not one that mentions it
  if not string.find(stored, id, 1, true) then
    return nil
  end
  local readable, message = pcall(cjson.decode, stored)
  if readable and type(message) == 'table' and type(message.headers) == 'table'
    and message.headers.id == id then
    return message
  end
end

local function run_of_first(id, message)
  -- returns: the run of a message that a move has pushed and no worker has had; or nil.  What
  -- was published, by a beat or by Celery, has a random tag, and may be there twice.
  local own, properties = message.headers.celery_delay, message.properties
  if type(own) ~= 'table' or own.task_id ~= id or type(own.run) ~= 'number'
    or type(properties) ~= 'table' then
    return nil
  end
  local info = properties.delivery_info
  if message.headers.redelivered or (type(info) == 'table' and info.redelivered) then
    return nil
  end
  local tag, start = properties.delivery_tag, id .. '.' .. text(own.run) .. '.'
  if type(tag) == 'string' and string.sub(tag, 1, #start) == start
    and string.find(tag, '^%d+$', #start + 1) then
    return text(own.run)
  end
end

local TOGETHER = 50
local found, unsearched, bytes, failure = {}, 0, 0, ''
local function search(list)
  local why = select_database(list.database)
  local length = why and 0 or redis.pcall('LLEN', list.key)
  if type(length) == 'table' then
    why, length = length.err, 0
  end
  if length > longest or bytes > most_bytes then
    unsearched = unsearched + 1
    return
  end
  -- workers take from the right, so what has waited longest is read first
  for last = -1, -length, -TOGETHER do
    local some = redis.pcall('LRANGE', list.key, last - TOGETHER + 1, last)
    if some.err then
      why = some.err
      break
    end
    for _, stored in ipairs(some) do
      bytes = bytes + #stored
      local message = message_for(task_id, stored)
      if message then
        found[#found + 1] = { list = list, stored = stored, message = message }
      end
    end
    if bytes > most_bytes then
      unsearched = unsearched + 1
      break
    end
  end
  if why then
    failure = list.key .. ' in DB ' .. text(list.database) .. ': ' .. why
  end
end
for _, list in ipairs(lists) do
  search(list)
end

local first = found[1]
local first_run = first and run_of_first(task_id, first.message)
local removed = 0
if #found == 1 and first_run then
  select_database(first.list.database)
  removed = redis.pcall('LREM', first.list.key, 1, first.stored)
  if type(removed) == 'table' then
    failure, removed = first.list.key .. ': ' .. removed.err, 0
  end
end
select_database(database)
if #found > 1 or (first and not first_run) then
  return { 'DOUBTFUL', text(now) }
end
if removed == 0 then
  return { 'MISSED', text(now), unsearched, failure }
end
bury('o/' .. operation, first_run, 'k/' .. task_id .. '/' .. first_run, first_run)
unwatch(task_id .. '/' .. first_run)
write_journal('REVOKED', { task_id .. '\t' .. first_run .. '\t1\t\t' .. data })
return { 'TAKEN', text(now), first_run, first.stored }
