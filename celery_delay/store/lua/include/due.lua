-- Due entries on their way out: which are fit to go, and the end of those that are not.
-- Expects the locals: now, mark, epoch, latest_ms, steal_ms, entries, blocked, and those of
-- journal.lua, tombstones.lua, records.lua, messages.lua, quarantine.lua, unique.lua and gates.lua.

local function refusal(progress)
  -- returns: why this caller takes nothing now, as the script's answer; or nil
  --   progress  the mark that the leader leaves each time, and a standby looks at
  local known = redis.call('HMGET', mark, 'epoch', 'unready')
  if tonumber(known[1] or 0) ~= epoch or known[2] then
    -- another history, or one that was not compared with SQL yet
    return { 'EPOCH', text(now) }
  end
  if latest_ms > 0 and now > latest_ms then
    return { 'JUMPED', text(now) }
  end
  if steal_ms == 0 then
    redis.call('HSET', mark, progress, text(now))
  elseif now - tonumber(redis.call('HGET', mark, progress) or 0) <= steal_ms then
    return { 'STANDBY', text(now) }
  end
end

local function next_due(from)
  local head = redis.call('ZRANGE', from, 0, 0, 'WITHSCORES')
  return head[2] or '-1'
end

local function due_entries(from, before, limit, skip)
  -- returns: the first entries due by then but for so many, with their records; skip < 0: the last
  local due
  if skip < 0 then
    due = redis.call('ZRANGE', from, text(before), '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, limit,
      'WITHSCORES')
  else
    due = redis.call('ZRANGE', from, '-inf', text(before), 'BYSCORE', 'LIMIT', skip, limit,
      'WITHSCORES')
  end
  -- Large records end the batch early: Redis serves nobody else meanwhile.
  local MOST_BYTES, TOGETHER = 8 * 1024 * 1024, 50
  local found, bytes = {}, 0
  for first = 1, #due, 2 * TOGETHER do
    local some = {}
    for i = first, math.min(first + 2 * TOGETHER, #due + 1) - 1, 2 do
      some[#some + 1] = due[i]
    end
    for i, record in ipairs(redis.call('HMGET', entries, unpack(some))) do
      local at = tonumber(due[first + 2 * i - 1])
      found[#found + 1] = { id = some[i], due = at, record = record or nil, run = '0', version = '0' }
      bytes = bytes + #(record or '')
    end
    if bytes > MOST_BYTES then
      break
    end
  end
  return found
end

local expired, bad, stuck = {}, {}, {}
local function park(entry, why)
  entry.why = why
  bad[#bad + 1] = entry
end
local function set_aside(entry, why)
  entry.why = why
  stuck[#stuck + 1] = entry
end

local function shape_of_fit(entry)
  -- returns: the shape of an entry that can go; nil for one that is expired, bad or stuck
  local codec, digest, run, version, deadline, expires, payload = read_head(entry.record or '')
  entry.run, entry.version, entry.payload = run or '0', version or '0', payload
  entry.deadline = tonumber(deadline or 0)
  if not entry.record then
    park(entry, 'the record is missing')
  elseif not codec then
    park(entry, 'the record is damaged')
  elseif codec ~= CODEC then
    -- written by a newer version: whoever understands it will take it
    set_aside(entry, 'the record has the unknown version ' .. codec)
  elseif not is_whole(payload, digest) then
    park(entry, 'the record is damaged')
  elseif tonumber(expires) > 0 and tonumber(expires) <= now then
    expired[#expired + 1] = entry
  else
    entry.template = template_of(payload)
    local shape = template(entry.template)
    if not shape then
      park(entry, 'its template is missing or damaged')
    end
    return shape
  end
end

-- stands behind the eta in our header: one more member of it, or nothing
local dispatch = ''
local function message_of(entry, shape, epoch)
  -- returns: the text of its envelope; nil for an entry that is bad
  entry.tag = text(epoch)
  if entry.may_be_out then
    -- take_off.lua knows by the delivery tag that this push may not be the first
    entry.tag = entry.tag .. '.again'
  end
  local message = text_of(entry, shape, entry.tag, dispatch)
  if not message then
    park(entry, 'its values do not fit its template')
  end
  return message
end

local function line(entry, data)
  return entry.id .. '\t' .. entry.run .. '\t' .. entry.version .. '\t' .. text(entry.due) .. '\t' .. data
end

local leaving, ended, marks, uses = {}, {}, {}, {}
local function leave(entry)
  leaving[#leaving + 1] = entry.id
  if entry.deadline >= now then
    -- its add may still be repeated
    marks[#marks + 1] = 'g/' .. entry.id .. '/' .. entry.run
    marks[#marks + 1] = entry.version
  end
end
local function release(entry, is_handed_off)
  -- for one that is neither live nor claimed nor parked any more
  ended[#ended + 1] = entry.id
  leave_key(entry.id, entry.run, text(entry.due), entry.payload, is_handed_off)
  local id = entry.template or template_of(entry.payload)
  if string.sub(id, 1, 1) ~= '=' and not entry.is_watched then
    uses[id] = (uses[id] or 0) + 1
  end
end

local function finish()
  -- writes what has gathered above; returns: why some were set aside, or ''
  local expired_lines, bad_lines, failure = {}, {}, ''
  for _, entry in ipairs(expired) do
    leave(entry)
    release(entry)
    expired_lines[#expired_lines + 1] = line(entry, '{}')
  end
  for _, entry in ipairs(bad) do
    put_in_quarantine(entry.id, entry.why, text(entry.due), entry.record or '')
    leave(entry)
    bad_lines[#bad_lines + 1] = line(entry, cjson.encode({ error = entry.why }))
  end
  for _, entry in ipairs(stuck) do
    redis.call('ZADD', blocked, text(entry.due), entry.id)
    failure = entry.why
  end
  finish_gates()
  if #leaving > 0 then
    redis.call('HDEL', entries, unpack(leaving))
  end
  if #ended > 0 then
    redis.call('HDEL', attempts, unpack(ended))
  end
  if #marks > 0 then
    bury(unpack(marks))
  end
  for id, count in pairs(uses) do
    redis.call('HINCRBY', template_uses, id, -count)
  end
  for _, id in ipairs(damaged) do
    -- the next add of this shape brings it again
    redis.call('HDEL', templates, id)
  end
  write_journal('EXPIRED', expired_lines)
  write_journal('QUARANTINED', bad_lines)
  return failure
end
