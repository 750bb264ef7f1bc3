--- Store entries, all of them or none; safe to repeat until their deadline.
-- @include clock instants journal tombstones records ways sides places keys unique claims handed_off quarantine out templates wake taking placing holders backed refusing alive
-- KEYS: mark schedule outbound entries blocked held gated gate_of claims claimed attempts quarantine templates template_uses journal tombstones_even tombstones_odd wake uniques unique_ends
-- ARGV: now:int:ms window:int:ms tombstone_ms:int:ms journal_max:int:events refuse_when_full:int:flag template_cap:int:templates template_count:int:templates leader_grace:int:ms epoch:int rest:*
--   leader_grace  nothing is added when the leader's last sign of life is older; 0 for any age
--   epoch         of entries that SQL backs: that in which they may be added; 0 for others
--   rest = template_count x (id, text), then per entry
--          (task id, due: "@" or, held, "#" instant, or "+" delay in ms, record, story as JSON, keys)
--   keys = "" or, as JSON: op that names the addition; key, the unique one; on, what to do if
--          somebody has it: error, keep, replace, extend or follow (take it from the run before,
--          or do without); idempotency, a key, and idempotency_ms
-- RETURNS: EPOCH now | LATE now | LEADERLESS now | FULL now | CONFLICT now task_id | TEMPLATE now id… | INLINE now
--   | UNIQUE now key task_id (of who has it) | BUSY now key task_id (it is being published)
--   | OK now codes leader_age_ms due_ms…   one code and one due instant per entry:
--   A added, D a repeat of a live entry, G gone (handed off already), C cancelled before it came,
--   S superseded (SQL has a higher version of it by now),
--   K not added since another has its key, E that one's eta moved instead: due_ms, run and task id
--   of that one; at the end, per entry taken out: position of what replaces it, task id, record,
--   template, due_ms
--   leader_age_ms is -1 when no leader has ever been seen

now = time_ms(now)
if is_elsewhere() then
  return { 'EPOCH', text(now) }
end

local given = {}
for i = 1, template_count do
  given[rest[2 * i - 1]] = rest[2 * i]
end

local ids, entries_given = {}, {}
for i = 2 * template_count + 1, #rest, 5 do
  local _, _, run, version, deadline, _, payload = read_head(rest[i + 2])
  if not run then
    return redis.error_reply('MALFORMED record of ' .. rest[i])
  end
  if now > tonumber(deadline) then
    return { 'LATE', text(now) }
  end
  ids[#ids + 1] = rest[i]
  entries_given[#entries_given + 1] = {
    id = rest[i], run = tonumber(run), version = tonumber(version), due = due_at(rest[i + 1]),
    record = rest[i + 2], payload = payload, story = rest[i + 3],
    is_held = string.byte(rest[i + 1]) == 35,
    keys = rest[i + 4] ~= '' and cjson.decode(rest[i + 4]),
    -- a run that the producer drew, instead of the one that follows a known run
    drawn = tonumber(deadline) - tonumber(run) == window,
  }
end

local live = redis.call('HMGET', entries, unpack(ids))
local seen, wanted, missing, adds = {}, {}, {}, false
for i, entry in ipairs(entries_given) do
  if seen[entry.id] then
    return { 'CONFLICT', text(now), entry.id }
  end
  seen[entry.id] = true
  entry.code = 'A'
  local _, refused_run = cancelled(entry.id)
  local score = live[i] and eta_of(entry.id)
  local eta_out, out = read_out(entry.id, score, live[i])
  local _, _, run_out = read_head(out or '')
  local refusal = entry.keys and decides(entry) and settle(entry)
  if refusal then
    return refusal
  elseif entry.holder then -- its keys have decided
  elseif run_out and tonumber(run_out) + 1 == entry.run and not entry.drawn then
    -- this message comes from inside that very run: it has been published, then
    entry.before = { eta_out, out }
  elseif score then
    local _, digest, run, version, _, _, payload = read_head(live[i])
    -- two calls with one task id may fall into the same millisecond: a repeat is the same text
    if tonumber(run) ~= entry.run
      or (entry.drawn and tonumber(version) == entry.version and live[i] ~= entry.record) then
      return { 'CONFLICT', text(now), entry.id }
    end
    if tonumber(version) >= entry.version then
      entry.code = 'D'
      entry.due = tonumber(score)
    elseif is_whole(payload, digest) then
      entry.replaced = payload
    end
  elseif run_out and tonumber(run_out) ~= entry.run then
    return { 'CONFLICT', text(now), entry.id }
  elseif run_out or has_left(entry.id, text(entry.run), entry.version) then
    entry.code = 'G'
  elseif entry.run <= refused_run then
    entry.code = 'C'
  elseif is_superseded(entry.id, text(entry.run), entry.version) then
    entry.code = 'S'
  end
  refusal = entry.code == 'A' and entry.keys and settle(entry)
  if refusal then
    return refusal
  end
  if entry.code == 'A' then
    adds = true
    local template = template_of(entry.payload)
    if string.sub(template, 1, 1) ~= '=' then
      if not given[template] and not wanted[template]
        and redis.call('HEXISTS', templates, template) == 0 then
        missing[#missing + 1] = template
      end
      wanted[template] = (wanted[template] or 0) + 1
    end
  end
end
local leader_age = age_of_leader()
if adds and leader_grace > 0 and (leader_age < 0 or leader_age > leader_grace) then
  return { 'LEADERLESS', text(now) }
end
if adds and refuse_when_full == 1 and journal_is_full() then
  return { 'FULL', text(now) }
end
if #missing > 0 then
  return { 'TEMPLATE', text(now), unpack(missing) }
end

local fresh = {}
for id in pairs(given) do
  if wanted[id] and redis.call('HEXISTS', templates, id) == 0 then
    fresh[#fresh + 1] = id
  end
end
if not have_room(#fresh, wanted) then
  return { 'INLINE', text(now) }
end

-- every check is behind us: write
for _, id in ipairs(fresh) do
  redis.call('HSET', templates, id, given[id])
end
for id, count in pairs(wanted) do
  redis.call('HINCRBY', template_uses, id, count)
end
local heads = heads_of_ways()
local is_earlier = false
local codes, dues, records, scheduled, refused, published, told = {}, {}, {}, {}, {}, {}, {}
local added, kept, scores = {}, {}, { [schedule] = {}, [outbound] = {}, [held] = {} }
for i, entry in ipairs(entries_given) do
  codes[i] = entry.code
  local other = entry.holder
  dues[i] = other and other.due .. ' ' .. other.run .. ' ' .. other.id or text(entry.due)
  local line = entry.id .. '\t' .. text(entry.run) .. '\t' .. text(entry.version) .. '\t'
    .. text(entry.due) .. '\t' .. entry.story
  if entry.code == 'A' then
    if entry.replaced then
      release_template(entry.replaced)
    end
    if entry.before then
      published[#published + 1] = handed_off(entry.id, unpack(entry.before))
      redis.call('HDEL', quarantine, entry.id)
    end
    local way = entry.is_held and held or schedule_of(entry.payload)
    local pairs_of_way = scores[way]
    pairs_of_way[#pairs_of_way + 1] = text(entry.due)
    pairs_of_way[#pairs_of_way + 1] = entry.id
    added[#added + 1] = entry.id
    is_earlier = is_earlier or (not entry.is_held and entry.due < heads[way])
    kept[#kept + 1] = entry.is_held and line or nil
    records[#records + 1] = entry.id
    records[#records + 1] = entry.record
    scheduled[#scheduled + 1] = line
  elseif entry.code == 'C' then
    refused[#refused + 1] = is_first_refusal(entry.id, text(entry.run)) and line or nil
  end
  if entry.keys then
    keep_keys(entry, i, told)
  end
end
if #added > 0 then
  -- an entry that takes another's place may go another way
  take_away(unpack(added))
end
for way, pairs_of_way in pairs(scores) do
  if #pairs_of_way > 0 then
    redis.call('ZADD', way, unpack(pairs_of_way))
  end
end
if #records > 0 then
  redis.call('HSET', entries, unpack(records))
end
write_journal('DISPATCHED', published)
write_journal('SCHEDULED', scheduled)
write_journal('HELD', kept)
if #refused > 0 then
  write_journal('SCHEDULED', refused)
  write_journal('CANCELLED', refused)
end
if is_earlier then
  wake_leader()
end
for _, part in ipairs(told) do
  dues[#dues + 1] = part
end
return { 'OK', text(now), table.concat(codes), text(leader_age), unpack(dues) }
