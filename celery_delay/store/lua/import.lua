--- Store entries and keys that were exported, each for itself, and mark them; safe to repeat.
-- @include clock journal tombstones records ways sides places keys unique claims quarantine out templates wake taking placing holders timely
-- KEYS: mark schedule outbound entries blocked held gated gate_of claims claimed attempts quarantine templates template_uses journal tombstones_even tombstones_odd wake uniques unique_ends imports
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int deadline:int:ms operation:str export_id:str keep_ms:int:ms template_cap:int:templates template_count:int:templates refuse_when_full:int:flag force:int:flag dry:int:flag rest:*
--   epoch      0: any
--   deadline   until when this call may be repeated; an attempt that arrives later does nothing
--   operation  names this call; a repeat gets the answer of the first attempt
--   export_id  the export that they come from; keep_ms is how long it is remembered what came of it
--   force      also what came of it before, or has just left
--   dry        nothing is written
--   rest = template_count x (id, text), then per item (its number in the export, what, task id, eta
--          in ms, record, story as JSON, why)
--   what = S, H or Q: an entry that is SCHEDULED, HELD or QUARANTINED, for which why is "silent why";
--          K: a key; eta is the holder's, record the field, story the holder's run, why the end in ms
-- RETURNS: EPOCH now | LATE now | FULL now | TEMPLATE now id… | INLINE now
--   | OK now verdict…   one verdict per item:
--   A stored, D it is here already, M it came of this export before and has left, G it has just left,
--   C it was just cancelled, O the key's time is over, "X run" another run is here, "K task_id" that
--   task has the key

now = time_ms(now)
local untimely = why_untimely()
if untimely then
  return { untimely, text(now) }
end
local answered = buried('o/' .. operation)[1]
if answered then
  return cjson.decode(answered)
end
if refuse_when_full == 1 and dry == 0 and journal_is_full() then
  return { 'FULL', text(now) }
end

local given, items, missing, wanted = {}, {}, {}, {}
for i = 1, template_count do
  given[rest[2 * i - 1]] = rest[2 * i]
end
for i = 2 * template_count + 1, #rest, 7 do
  local item = { number = rest[i], what = rest[i + 1], id = rest[i + 2], due = rest[i + 3],
    record = rest[i + 4], story = rest[i + 5], why = rest[i + 6] }
  if item.what ~= 'K' then
    local _, _, run, version, _, _, payload = read_head(item.record)
    if not run then
      return redis.error_reply('MALFORMED record of ' .. item.id)
    end
    item.run, item.version, item.payload = run, version, payload
    local template = template_of(payload)
    if string.sub(template, 1, 1) ~= '=' and not wanted[template] then
      wanted[template] = true
      if not given[template] and redis.call('HEXISTS', templates, template) == 0 then
        missing[#missing + 1] = template
      end
    end
  end
  items[#items + 1] = item
end
local fresh = 0
for id in pairs(given) do
  if redis.call('HEXISTS', templates, id) == 0 then
    fresh = fresh + 1
  end
end
if dry == 0 and #missing > 0 then
  return { 'TEMPLATE', text(now), unpack(missing) }
end
if dry == 0 and not have_room(fresh, wanted) then
  return { 'INLINE', text(now) }
end

local seen = imports .. ':' .. export_id
local function has_come(item)
  return force == 0 and redis.call('GETBIT', seen, item.number) == 1
end

local function verdict_of_key(key)
  if tonumber(key.why) <= now then
    return 'O'
  end
  local holder
  if string.sub(key.record, 1, 2) == 'u:' then
    holder = holder_of(key.record)
  else
    holder = read_key(key.record)
    holder = holder and holder.ends > now and holder
  end
  if holder then
    return holder.id == key.id and holder.run == key.story and 'D' or 'K ' .. holder.id
  end
  return has_come(key) and 'M' or 'A'
end

local function verdict_of(entry)
  local _, _, _, out = read_claim(entry.id)
  local _, parked = read_parked(entry.id)
  local here = out or parked or (eta_of(entry.id) and redis.call('HGET', entries, entry.id))
  if here then
    local _, _, run = read_head(here)
    if run == entry.run then
      return 'D'
    end
    return has_come(entry) and 'M' or 'X ' .. (run or '0')
  end
  if has_come(entry) then
    return 'M'
  end
  if force == 0 and gone(entry.id, entry.run) >= 0 then
    return 'G'
  end
  local _, refused = cancelled(entry.id)
  if force == 0 and tonumber(entry.run) <= refused then
    return 'C'
  end
  entry.field = unique_of(entry.payload)
  local holder = entry.field and holder_of(entry.field)
  return holder and holder.id ~= entry.id and 'K ' .. holder.id or 'A'
end

local told = { S = {}, H = {}, Q = {} }
local heads = {}
for _, way in ipairs({ schedule, outbound }) do
  heads[way] = tonumber(redis.call('ZRANGE', way, 0, 0, 'WITHSCORES')[2]) or math.huge
end
local is_earlier = false

local function put(entry)
  local template = template_of(entry.payload)
  if string.sub(template, 1, 1) ~= '=' then
    if given[template] then
      redis.call('HSET', templates, template, given[template])
    end
    redis.call('HINCRBY', template_uses, template, 1)
  end
  local line = entry.id .. '\t' .. entry.run .. '\t' .. entry.version .. '\t' .. entry.due .. '\t'
  told.S[#told.S + 1] = line .. entry.story
  if entry.what == 'Q' then
    local silent, why = string.match(entry.why, '^(%d+) (.*)$')
    if silent ~= '0' then
      redis.call('HSET', attempts, entry.id, silent)
    end
    put_in_quarantine(entry.id, why, entry.due, entry.record)
    told.Q[#told.Q + 1] = line .. cjson.encode({ error = why })
  else
    local way = schedule_of(entry.payload)
    if entry.what == 'H' then
      told.H[#told.H + 1] = line .. '{"reason":"imported"}'
      redis.call('ZADD', held, entry.due, entry.id)
    else
      is_earlier = is_earlier or tonumber(entry.due) < heads[way]
      redis.call('ZADD', way, entry.due, entry.id)
    end
    redis.call('HSET', entries, entry.id, entry.record)
  end
  if entry.field then
    write_key(entry.field, 0, entry.id, entry.run, entry.due)
  end
end

local answer, is_marked = { 'OK', text(now) }, false
for i, item in ipairs(items) do
  local verdict = item.what == 'K' and verdict_of_key(item) or item.what ~= 'K' and verdict_of(item)
  answer[2 + i] = verdict
  if dry == 0 and verdict == 'A' then
    if item.what == 'K' then
      write_key(item.record, tonumber(item.why), item.id, item.story, item.due)
    else
      put(item)
    end
  end
  if dry == 0 and string.find('ADGC', verdict, 1, true) then
    redis.call('SETBIT', seen, item.number, 1)
    is_marked = true
  end
end
if is_marked then
  redis.call('PEXPIRE', seen, text(keep_ms))
  bury('o/' .. operation, cjson.encode(answer))
end
write_journal('SCHEDULED', told.S)
write_journal('HELD', told.H)
write_journal('QUARANTINED', told.Q)
if is_earlier then
  wake_leader()
end
return answer
