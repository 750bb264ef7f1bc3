--- Digest the live entries that come next, in the order of their eta and id; changes nothing.
-- @include clock records order
-- @allow-oom
-- KEYS: entries schedule outbound blocked held gated template_uses
-- ARGV: now:int:ms after_ms:int:ms after_id:str before_ms:int:ms limit:int:entries state:str
--   after_ms  after_id   the position behind which to begin; no id: at that eta
--   before_ms the latest eta
--   state     a letter, as in page.lua
-- RETURNS: MORE now count digest eta_ms task_id   there is more behind the last one, which is told
--   | END now count digest   there is nothing behind it
--   digest: SHA-1 of a line "id TAB run TAB version TAB eta TAB H or S" for each; of one whose record
--   cannot be read the run and the version are "?"

now = time_ms(now)
local lines = {}
local last_id, last_eta
local head, id, eta = next_head()
while head and #lines < limit do
  local _, _, run, version = read_head(redis.call('HGET', entries, id) or '')
  local letter = head.letter == 'H' and 'H' or 'S'
  lines[#lines + 1] = id .. '\t' .. (run or '?') .. '\t' .. (version or '?') .. '\t' .. text(eta)
    .. '\t' .. letter .. '\n'
  last_id, last_eta, head.at = id, eta, head.at + 2
  head, id, eta = next_head()
end
local digest = redis.sha1hex(table.concat(lines))
if head then
  return { 'MORE', text(now), #lines, digest, text(last_eta), last_id }
end
return { 'END', text(now), #lines, digest }
