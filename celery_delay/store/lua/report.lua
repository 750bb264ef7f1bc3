--- Take note of what workers tell of runs: in the watch, in the guard's marks, and in the journal.
-- @include clock journal records watching marks
-- @allow-oom
-- KEYS: mark journal template_uses watched watching marks mark_looks done_even done_odd
-- ARGV: now:int:ms journal_max:int:events missing:int:events keep_ms:int:ms rest:*
--   missing  how many transitions the caller could not write before
--   keep_ms  for how long a run that is over is known; 0: nobody guards runs
--   rest = (state, lines) pairs; before a state, "!": for watch and marks alone, "+": the broker
--     keeps the message until the run is over, so that the watch goes on; FETCHED is no state: a
--     worker has the message, though the broker does not know it
-- RETURNS: now

local REACHED = { STARTED = 'S', SUCCEEDED = 'E', FAILED = 'E', REVOKED = 'E', REJECTED = 'E',
  RETRIED = 'E', FETCHED = 'F' }

local function is_here(member)
  -- the look that has not found it is taken back
  local copies, misses, due, tag, record = read_watch(member)
  if misses == '1' then
    redis.call('HSET', watching, member, watch_text(copies, '0', due, tag, record))
  end
end

local function reached(stage, is_kept, line)
  local id, run = string.match(line, '^([^\t]*)\t(%d+)\t')
  if not id then
    return
  end
  local member = id .. '/' .. run
  if stage == 'F' then
    return is_here(member)
  end
  if not is_kept then
    unwatch(member)
  end
  if keep_ms > 0 and stage == 'E' then
    end_mark(member)
  elseif keep_ms > 0 then
    local had, token, worker = read_mark(member)
    if had == 'C' then
      write_mark(member, 'S', token, worker)
    end
  end
end

now = time_ms(now)
if missing > 0 and journal_max > 0 then
  redis.call('HINCRBY', mark, 'gap', missing)
  if not journal_is_full() then
    tell_gap()
  end
end
for i = 1, #rest, 2 do
  local unsaid, kept, state = string.match(rest[i], '^(!?)(%+?)(.*)$')
  local lines = {}
  for line in string.gmatch(rest[i + 1], '[^\n]+') do
    lines[#lines + 1] = line
    if REACHED[state] then
      reached(REACHED[state], kept ~= '', line)
    end
  end
  if unsaid == '' then
    write_journal(state, lines)
  end
end
return text(now)
