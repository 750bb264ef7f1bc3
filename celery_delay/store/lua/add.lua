--- Store entries, all of them or none; safe to repeat until their deadline.
-- @include clock instants journal tombstones records ways places claims quarantine out wake
-- KEYS: mark schedule outbound entries blocked held claims claimed attempts quarantine templates template_uses journal tombstones_even tombstones_odd wake
-- ARGV: now:int:ms window:int:ms tombstone_ms:int:ms journal_max:int:events refuse_when_full:int:flag template_cap:int:templates template_count:int:templates leader_grace:int:ms rest:*
--   leader_grace  nothing is added when the leader's last sign of life is older; 0 for any age
--   rest = template_count x (id, text), then per entry
--          (task id, due: "@" instant or "+" delay in ms, record, story as JSON)
-- RETURNS: LATE now | LEADERLESS now | FULL now | CONFLICT now task_id | TEMPLATE now id… | INLINE now
--   | OK now codes leader_age_ms due_ms…   one code and one due instant per entry:
--   A added, D a repeat of a live entry, G gone (handed off already), C cancelled before it came
--   leader_age_ms is -1 when no leader has ever been seen

now = time_ms(now)

local given = {}
for i = 1, template_count do
  given[rest[2 * i - 1]] = rest[2 * i]
end

local ids, entries_given = {}, {}
for i = 2 * template_count + 1, #rest, 4 do
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
  if run_out and tonumber(run_out) + 1 == entry.run and not entry.drawn then
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
  elseif run_out or gone(entry.id, text(entry.run)) >= entry.version then
    entry.code = 'G'
  elseif entry.run <= refused_run then
    entry.code = 'C'
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
-- also a sign of life from the future is none: the clock was set back since
local alive = tonumber(redis.call('HGET', mark, 'alive') or -1)
local leader_age = alive < 0 and -1 or math.abs(now - alive)
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
if redis.call('HLEN', templates) + #fresh > template_cap then
  -- only now are unused templates worth looking for
  local uses = redis.call('HGETALL', template_uses)
  for i = 1, #uses, 2 do
    if tonumber(uses[i + 1]) <= 0 and not wanted[uses[i]] then
      redis.call('HDEL', templates, uses[i])
      redis.call('HDEL', template_uses, uses[i])
    end
  end
  if redis.call('HLEN', templates) + #fresh > template_cap then
    return { 'INLINE', text(now) }
  end
end

-- every check is behind us: write
for _, id in ipairs(fresh) do
  redis.call('HSET', templates, id, given[id])
end
for id, count in pairs(wanted) do
  redis.call('HINCRBY', template_uses, id, count)
end
local heads = {}
for _, way in ipairs({ schedule, outbound }) do
  heads[way] = tonumber(redis.call('ZRANGE', way, 0, 0, 'WITHSCORES')[2]) or math.huge
end
local is_earlier = false
local codes, dues, records, scheduled, refused, published = {}, {}, {}, {}, {}, {}
local added, scores = {}, { [schedule] = {}, [outbound] = {} }
for i, entry in ipairs(entries_given) do
  codes[i] = entry.code
  dues[i] = text(entry.due)
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
    local way = schedule_of(entry.payload)
    local pairs_of_way = scores[way]
    pairs_of_way[#pairs_of_way + 1] = text(entry.due)
    pairs_of_way[#pairs_of_way + 1] = entry.id
    added[#added + 1] = entry.id
    is_earlier = is_earlier or entry.due < heads[way]
    records[#records + 1] = entry.id
    records[#records + 1] = entry.record
    scheduled[#scheduled + 1] = line
  elseif entry.code == 'C' then
    local told = 'r/' .. entry.id .. '/' .. text(entry.run)
    if #buried(told) == 0 then
      refused[#refused + 1] = line
      -- a repeat of this add must not be journalled again, and a repeat of the cancel can
      -- say from now on that it did cancel
      local _, refused_run = cancelled(entry.id)
      bury(told, '')
      bury('c/' .. entry.id, 'F ' .. text(refused_run))
    end
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
if #refused > 0 then
  write_journal('SCHEDULED', refused)
  write_journal('CANCELLED', refused)
end
if is_earlier then
  wake_leader()
end
return { 'OK', text(now), table.concat(codes), text(leader_age), unpack(dues) }
