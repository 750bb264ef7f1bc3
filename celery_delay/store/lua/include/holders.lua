-- What becomes of an addition whose unique key, or idempotency key, somebody has.
-- Expects the locals: entries, held, and those of keys.lua, unique.lua, claims.lua, quarantine.lua,
-- tombstones.lua, taking.lua and placing.lua.

local function holder_of(field)
  -- returns: who has the unique key, with what it is: waiting, out (a beat is publishing it, or
  --   nobody knows how far one came), parked, or ahead (handed off, under a lease); nil: it is free
  local holder = read_key(field)
  if not holder or (holder.ends > 0 and holder.ends <= now) then
    return nil
  end
  if holder.ends > 0 then
    holder.is = 'ahead'
    return holder
  end
  local function has(eta, record, is)
    -- another run in its place says nothing; a record that cannot be read may be this one
    local _, _, run = read_head(record or '')
    if record and (not run or run == holder.run) then
      holder.is, holder.record, holder.due = is, record, eta and text(tonumber(eta)) or holder.due
      return true
    end
  end
  local _, _, eta, record = read_claim(holder.id)
  if has(eta, record, 'out') then
    return holder
  end
  local silent = redis.call('HEXISTS', attempts, holder.id) == 1
  if has(eta_of(holder.id), redis.call('HGET', entries, holder.id), silent and 'out' or 'waiting') then
    return holder
  end
  eta, record, holder.silent = read_parked(holder.id)
  return has(eta, record, 'parked') and holder or nil
end

local function refused_for(entry, holder, status)
  if status == 'UNIQUE' then
    -- an attempt that is still on its way must not find the key free
    bury('o/' .. entry.keys.op, 'X ' .. holder.id)
  end
  return { status, text(now), entry.keys.key, holder.id }
end

local function answer_with(entry, code, holder)
  entry.code, entry.holder = code, holder
end

local pending = {}
local function settle(entry)
  -- decides about an addition with keys that would be stored otherwise
  -- returns: why the call is refused, as the script's answer; or nil
  local keys = entry.keys
  local answered = buried('o/' .. keys.op)[1]
  if answered then
    local code, due, run, id = string.match(answered, '^(%u) (%d+) (%d+) (.*)$')
    if not code then
      return refused_for(entry, { id = string.sub(answered, 3) }, 'UNIQUE')
    end
    entry.is_answered = true
    return answer_with(entry, code, { due = due, run = run, id = id })
  end
  local again = keys.idempotency and 'i:' .. keys.idempotency
  local first = again and (pending[again] or read_key(again))
  if first and (pending[again] or first.ends > now) then
    return answer_with(entry, 'K', first)
  end
  local field = unique_of(entry.payload)
  local own = { id = entry.id, run = text(entry.run), due = text(entry.due) }
  local holder = field and (pending[field] or holder_of(field))
  if holder and holder.id == entry.id and (keys.on == 'follow' or holder.run == own.run) then
    holder = nil
  end
  if not holder or keys.on == 'replace' or keys.on == 'extend' then
    entry.field = field
  end
  if holder and keys.on == 'keep' then
    answer_with(entry, 'K', holder)
  elseif holder and keys.on ~= 'follow' then
    local is_replace = keys.on == 'replace'
    if holder.is == 'out' and keys.on ~= 'error' then
      return refused_for(entry, holder, 'BUSY')
    elseif not (is_replace and (holder.is == 'waiting' or holder.silent == 0))
      and not (keys.on == 'extend' and holder.is == 'waiting' and next_version(holder.record)) then
      return refused_for(entry, holder, 'UNIQUE')
    elseif is_replace then
      entry.displaced = holder
    else
      holder.due = own.due
      answer_with(entry, 'E', holder)
    end
  end
  if again then
    pending[again] = entry.holder or own
  end
  if entry.field then
    local now_with = entry.holder or own
    pending[field] = { id = now_with.id, run = now_with.run, due = now_with.due }
  end
end

local function decides(entry)
  -- whether the keys of an addition say more than its task id: the call is a known one, or the
  -- task of this very id, from another call, has the key
  local keys, run = entry.keys, text(entry.run)
  local function is_own(holder)
    return holder.id == entry.id and holder.run == run
  end
  local first = keys.idempotency and read_key('i:' .. keys.idempotency)
  if #buried('o/' .. keys.op) > 0 or (first and first.ends > now and not is_own(first)) then
    return true
  end
  local field = (keys.on == 'keep' or keys.on == 'extend') and unique_of(entry.payload)
  local holder = field and holder_of(field)
  return holder and holder.id == entry.id and not is_own(holder)
end

local function keep_keys(entry, position, told)
  -- writes what was decided; told gets the parts of an entry that had to go, as add.lua says them
  if not string.find('AKE', entry.code, 1, true) or entry.is_answered then
    return
  end
  local keys = entry.keys
  local said = entry.holder or { id = entry.id, run = text(entry.run), due = text(entry.due) }
  if entry.displaced then
    local old = entry.displaced
    local data = cjson.encode({ reason = 'replaced', replaced_by = entry.id })
    local _, highest = cancelled(old.id)
    local _, _, stored, refused = take_out(old.id, old.record, old.due, data, math.max(now, highest))
    bury('c/' .. old.id, 'F ' .. text(refused))
    if old.is == 'parked' then
      redis.call('HDEL', quarantine, old.id)
    end
    for _, part in ipairs({ text(position), old.id, old.record, stored or '', old.due }) do
      told[#told + 1] = part
    end
  elseif entry.code == 'E' then
    local changed = next_version(said.record)
    local is_held = redis.call('ZSCORE', held, said.id) ~= false
    place_anew(said.id, changed, entry.due, is_held, '{"reason":"extended"}')
  end
  if entry.code == 'A' and entry.field then
    write_key(entry.field, 0, said.id, said.run, said.due)
  end
  if entry.code ~= 'A' then
    bury('o/' .. keys.op, entry.code .. ' ' .. said.due .. ' ' .. said.run .. ' ' .. said.id)
  end
  local again = keys.idempotency and 'i:' .. keys.idempotency
  local first = again and read_key(again)
  if again and not (first and first.ends > now) then
    write_key(again, now + keys.idempotency_ms, said.id, said.run, said.due)
  end
end
