-- Journal of transitions: one stream entry per script call and state, one line per task.
-- Expects the locals: mark, journal, journal_max (0: no audit), now.

local function write_event(state, lines)
  redis.call('XADD', journal, '*', 's', state, 'e', redis.call('HGET', mark, 'epoch') or '0',
    't', text(now), 'd', table.concat(lines, '\n'))
end

local function journal_is_full()
  return journal_max > 0 and redis.call('XLEN', journal) >= journal_max
end

local function tell_gap()
  local gap = redis.call('HGET', mark, 'gap')
  if gap then
    write_event('GAP', { '-\t0\t0\t\t{"missing":' .. gap .. '}' })
    redis.call('HDEL', mark, 'gap')
  end
end

local function write_journal(state, lines)
  if journal_max == 0 or #lines == 0 then
    return
  end
  if journal_is_full() then
    redis.call('HINCRBY', mark, 'gap', #lines)
    return
  end
  tell_gap()
  write_event(state, lines)
end
