"""What Redis does in one step: Lua scripts, sent whole by EVAL.

All keys that a script touches are among its KEYS, and all of them are in one slot. No table is unpacked into
arguments, so how many domains there are does not matter.
"""

from __future__ import annotations

FOLLOW = """
-- KEYS: live, changes
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
return {newest[1] and newest[1][1] or '0-0', redis.call('HGETALL', KEYS[1])}
"""
"""Answers where the stream of changes ends, and what is live there: domain, version, domain, version..."""

PROMOTE = """
-- KEYS: live, changes, a history for each domain, the packs of those domains that are not retired
-- ARGV: how many domains, entries kept of a history, entries kept of changes, `versions` and `time` of the
--       entry of changes; for each domain its name, its version or '', its entry of history; then for each
--       domain of which something is expected its name and the version, or ''
local domains, kept = tonumber(ARGV[1]), tonumber(ARGV[2])
local pack = 2 + domains
for i = 1, domains do
  if ARGV[3 * i + 4] ~= '' then
    pack = pack + 1
    if redis.call('EXISTS', KEYS[pack]) == 0 then
      return {'unknown', ARGV[3 * i + 3], ARGV[3 * i + 4]}
    end
  end
end
for i = 3 * domains + 6, #ARGV, 2 do
  local live = redis.call('HGET', KEYS[1], ARGV[i]) or ''
  if live ~= ARGV[i + 1] then
    return {'conflict', ARGV[i], live}
  end
end
for i = 1, domains do
  redis.call('HSET', KEYS[1], ARGV[3 * i + 3], ARGV[3 * i + 4])
  if redis.call('RPUSH', KEYS[2 + i], ARGV[3 * i + 5]) > kept then
    redis.call('LTRIM', KEYS[2 + i], -kept, -1)
  end
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'versions', ARGV[4], 'time', ARGV[5])
return {}
"""
"""Answers nothing, or why nothing was done: `unknown` or `conflict`, the domain, and the version."""

REMOVE = """
-- KEYS: live; for each pack the history of its domain and the pack
-- ARGV: how many versions of a history to spare; for each pack its domain and its version
local spare = tonumber(ARGV[1])
local spared, removed = {}, {}
for i = 1, (#ARGV - 1) / 2 do
  local domain, version = ARGV[2 * i], ARGV[2 * i + 1]
  if not spared[domain] then
    local last, count = {}, 0
    local history = redis.call('LRANGE', KEYS[2 * i], 0, -1)
    for j = #history, 1, -1 do
      if count >= spare then
        break
      end
      local promoted = cjson.decode(history[j]).version
      if type(promoted) == 'string' and not last[promoted] then
        last[promoted] = true
        count = count + 1
      end
    end
    spared[domain] = last
  end
  if redis.call('HGET', KEYS[1], domain) ~= version and not spared[domain][version] then
    local nbytes = redis.call('STRLEN', KEYS[2 * i + 1])
    if redis.call('DEL', KEYS[2 * i + 1]) == 1 then
      removed[#removed + 1] = {i, nbytes}
    end
  end
end
return removed
"""
"""Answers for each pack removed which of those asked for it is, counted from 1, and its bytes."""

SIZES = """
-- KEYS: packs
local sizes = {}
for i, key in ipairs(KEYS) do
  sizes[i] = redis.call('EXISTS', key) == 1 and redis.call('STRLEN', key) or -1
end
return sizes
"""
"""Answers the bytes of each pack, -1 where it is gone."""
