"""The Lua scripts: what has to happen on the server in one step.

Names of keys: a stream is the topic's physical name. Beside it stand
`<topic>:waiting:<group>`: entries that wait for their time, by due time in milliseconds;
`<topic>:leases:<group>`: each member's lease in milliseconds;
`<topic>:lapsed:<group>:<member>`: this member lost entries to another;
`<topic>:settings`: `retention` in seconds, `lost`, how many messages were trimmed before they were handled, and
`untold`, how many of these publishers trimmed (`maxlen`) and no member has reported yet.
Physical names hold no colon.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha1
from types import MappingProxyType
from typing import NamedTuple

WAITING = ":waiting"
"""The member that owns the entries of the waiting set, so that nobody takes them for a dead member's."""


class Script(NamedTuple):
    """A script and the name under which the server caches it."""

    text: str
    sha: str


def _script(text: str) -> Script:
    text = text.replace("WAITING", f"'{WAITING}'")
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def waiting(topic: str, group: str) -> str:
    return f"{topic}:waiting:{group}"


def leases(topic: str, group: str) -> str:
    return f"{topic}:leases:{group}"


def lapsed(topic: str, group: str, member: str = "") -> str:
    return f"{topic}:lapsed:{group}:{member}"


def settings(topic: str) -> str:
    return f"{topic}:settings"


# Milliseconds with their fraction, so that nothing comes a moment too early; as text, since Lua's own has 14 digits.
_NOW = """
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + t[2] / 1000
end
local function text(ms) return string.format('%.3f', ms) end
local function wait(first, t) return first and math.max(math.ceil((first - t) * 1000), 0) or -1 end
"""
_IDS = """
local function parts(id)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  return tonumber(ms), tonumber(seq), ms, seq
end
local function before(a, b)
  local am, as = parts(a)
  local bm, bs = parts(b)
  return am < bm or (am == bm and as < bs)
end
local function after(id)
  local m, s, ms, seq = parts(id)
  if #seq > 15 then return string.format('%.0f-0', m + 1) end
  return string.format('%s-%.0f', ms, s + 1)
end
"""
# One entry to one member, with this count of deliveries; false when it was trimmed under way.
_HAND = """
local gone = 0
local function hand(stream, group, member, id, count)
  local entry = redis.call('XCLAIM', stream, group, member, 0, id, 'RETRYCOUNT', count)[1]
  if entry then return {id, entry[2], count} end
  redis.call('XACK', stream, group, id)
  redis.pcall('HINCRBY', stream .. ':settings', 'lost', 1)
  gone = gone + 1
  return false
end
"""
# `read`: all before it was handed out to every group; `settled`: all before it is settled by every group.
_BOUNDS = (
    _IDS
    + """
local function bounds(stream)
  local read, settled
  for _, reply in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local g = {}
    for i = 1, #reply, 2 do g[reply[i]] = reply[i + 1] end
    local id = after(g['last-delivered-id'])
    if not read or before(id, read) then read = id end
    if g.pending > 0 then
      local first = redis.call('XPENDING', stream, g.name)[2]
      if before(first, id) then id = first end
    end
    if not settled or before(id, settled) then settled = id end
  end
  return read or '0-0', settled or '0-0'
end
"""
)

# KEYS stream; ARGV arguments per message (3: body, headers, media; 4: and key; 5: and which of "k", "m" it has),
# maxlen or "", then the messages. Returns {index, error} of those not stored: a failed key takes its later ones along.
SEND = _script(
    _BOUNDS
    + """
local n, maxlen, out, failed = tonumber(ARGV[1]), ARGV[2], {}, {}
for i = 3, #ARGV, n do
  local r
  local key = n > 3 and ARGV[i + 3]
  local kind = n == 5 and ARGV[i + 4]
  if kind and not string.find(kind, 'k', 1, true) then key = false end
  if key and failed[key] then
    out[#out + 1] = {(i - 3) / n, ''}
  else
    if not kind then
      if key then
        r = redis.pcall('XADD', KEYS[1], '*', 'b', ARGV[i], 'h', ARGV[i + 1], 't', ARGV[i + 2], 'k', key)
      else
        r = redis.pcall('XADD', KEYS[1], '*', 'b', ARGV[i], 'h', ARGV[i + 1], 't', ARGV[i + 2])
      end
    else
      local f = {'b', ARGV[i], 'h', ARGV[i + 1], 't', ARGV[i + 2]}
      if key then f[#f + 1] = 'k'; f[#f + 1] = key end
      if string.find(kind, 'm', 1, true) then f[#f + 1] = 'm'; f[#f + 1] = '1' end
      r = redis.pcall('XADD', KEYS[1], '*', unpack(f))
    end
    if type(r) == 'table' then
      out[#out + 1] = {(i - 3) / n, r.err}
      if key then failed[key] = true end
    end
  end
end
if maxlen ~= '' then
  local excess = math.min(redis.call('XLEN', KEYS[1]) - maxlen, 200)
  if excess > 0 then
    local old = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', excess + 1)
    local read, lost = bounds(KEYS[1]), 0
    for i = 1, excess do if not before(old[i][1], read) then lost = lost + 1 end end
    redis.call('XTRIM', KEYS[1], 'MINID', '=', old[excess + 1][1])
    if lost > 0 then
      redis.pcall('HINCRBY', KEYS[1] .. ':settings', 'lost', lost)
      redis.pcall('HINCRBY', KEYS[1] .. ':settings', 'untold', lost)
    end
  end
end
return out"""
)

# KEYS stream, lapsed, row; ARGV group, member, revision or "", ids. Returns the places of those no longer ours, or -1.
ACK = _script("""
local group, member, lost = ARGV[1], ARGV[2], {}
if ARGV[3] ~= '' then
  if redis.call('HGET', KEYS[3], 'r') ~= ARGV[3] then return -1 end
elseif redis.call('EXISTS', KEYS[2]) == 1 then
  for i = 4, #ARGV do
    local p = redis.call('XPENDING', KEYS[1], group, ARGV[i], ARGV[i], 1)[1]
    if p and p[2] == member then redis.call('XACK', KEYS[1], group, ARGV[i]) else lost[#lost + 1] = i - 4 end
  end
  return lost
end
for i = 4, #ARGV, 1000 do redis.call('XACK', KEYS[1], group, unpack(ARGV, i, math.min(i + 999, #ARGV))) end
return lost""")

# KEYS stream, waiting, row; ARGV group, member, revision or "", then id, verdict, milliseconds of each.
# Returns for each 1, 0 (no longer ours), 2 (trimmed under way) or an error.
GIVE = _script(
    _NOW
    + _IDS
    + """
local group, member, out = ARGV[1], ARGV[2], {}
local fenced = ARGV[3] ~= '' and redis.call('HGET', KEYS[3], 'r') ~= ARGV[3]
for i = 4, #ARGV, 3 do
  local id, verdict, ms = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local p = not fenced and redis.call('XPENDING', KEYS[1], group, id, id, 1)[1]
  local done = 0
  if p and p[2] == member then
    done = 1
    if verdict == 'extend' then
      redis.call('XCLAIM', KEYS[1], group, member, 0, id, 'IDLE', ms, 'JUSTID')
    else
      local count, due = p[4], now() + ms
      if verdict == 'release' then
        count = math.max(count - 1, 0)
        local m, s = parts(id)
        due = m + math.min(s, 4095) / 4096 -- past, and in stored order
      end
      local added = redis.pcall('ZADD', KEYS[2], string.format('%.17g', due), id)
      if type(added) == 'table' then
        done = added.err -- out of memory: the entry stays ours
      elseif not redis.call('XCLAIM', KEYS[1], group, WAITING, 0, id, 'RETRYCOUNT', count, 'JUSTID')[1] then
        redis.call('ZREM', KEYS[2], id)
        redis.call('XACK', KEYS[1], group, id)
        redis.pcall('HINCRBY', KEYS[1] .. ':settings', 'lost', 1)
        done = 2
      end
    end
  end
  out[#out + 1] = done
end
return out"""
)

# KEYS stream; ARGV group, member, from, count: what is pending for this member, handed out again and not counted.
# Returns entries as {id, fields, deliveries}, how many were trimmed, and the last id looked at ("" at the end).
OWN = _script(
    _HAND
    + """
local out, last = {}, ''
local rows = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], '+', ARGV[4], ARGV[2])
for _, p in ipairs(rows) do
  last = p[1]
  out[#out + 1] = hand(KEYS[1], ARGV[1], ARGV[2], p[1], p[4]) or nil
end
if #rows < tonumber(ARGV[4]) then last = '' end
return {out, gone, last}"""
)

# KEYS stream, waiting, row; ARGV group, member, from, count, revision: the group's pending entries, whoever had them,
# in stored order, to the holder of the lease. Returns as OWN does, or nil when the lease is not ours.
TAKEOVER = _script(
    _HAND
    + """
if redis.call('HGET', KEYS[3], 'r') ~= ARGV[5] then return false end
local out, last = {}, ''
local rows = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], '+', ARGV[4])
for _, p in ipairs(rows) do
  last = p[1]
  redis.call('ZREM', KEYS[2], p[1])
  local count = p[4]
  if p[2] ~= ARGV[2] then count = count + 1 end
  out[#out + 1] = hand(KEYS[1], ARGV[1], ARGV[2], p[1], count) or nil
end
if #rows < tonumber(ARGV[4]) then last = '' end
return {out, gone, last}"""
)

# KEYS stream, waiting, row; ARGV group, member, count, revision or "": what waited and is due.
# Returns entries, how many were trimmed, microseconds to the next (-1: none waits).
DUE = _script(
    _NOW
    + _HAND
    + """
local out, t = {}, now()
if ARGV[4] ~= '' and redis.call('HGET', KEYS[3], 'r') ~= ARGV[4] then return {out, 0, -1} end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', text(t), 'LIMIT', 0, ARGV[3])) do
  local p = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1]
  if p then out[#out + 1] = hand(KEYS[1], ARGV[1], ARGV[2], id, p[4] + 1) or nil end
  redis.call('ZREM', KEYS[2], id)
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
return {out, gone, wait(first, t)}"""
)

# KEYS stream, waiting, leases; ARGV group, member, lease in ms of a member that told none, count, lapsed prefix, ms
# after which an empty member goes. Takes over what dead members held: it looks at each member's own pending entries,
# so never at those that wait.
# Returns entries and how many were trimmed.
REAP = _script(
    _HAND
    + """
local out, room = {}, tonumber(ARGV[4])
for _, reply in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local c = {}
  for i = 1, #reply, 2 do c[reply[i]] = reply[i + 1] end
  if c.name == WAITING then
    if c.pending > redis.call('ZCARD', KEYS[2]) then -- the set was evicted or deleted
      for _, p in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1000, WAITING)) do
        redis.pcall('ZADD', KEYS[2], 'NX', 0, p[1])
      end
    end
  elseif c.name ~= ARGV[2] then
    if c.pending == 0 then
      if c.idle > tonumber(ARGV[6]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], c.name)
        redis.call('HDEL', KEYS[3], c.name)
      end
    elseif room > 0 then
      local lease = redis.call('HGET', KEYS[3], c.name) or ARGV[3]
      local rows = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', lease, '-', '+', room, c.name)
      if #rows > 0 then redis.pcall('SET', ARGV[5] .. c.name, 1, 'PX', 86400000) end
      for _, p in ipairs(rows) do
        out[#out + 1] = hand(KEYS[1], ARGV[1], ARGV[2], p[1], p[4] + 1) or nil
        room = room - 1
      end
    end
  end
end
return {out, gone}"""
)

# KEYS stream and row of each leased topic; ARGV group, member, revisions.
# Returns for each 1, 0 when another member has pending entries there, -1 when the lease is not ours.
GUARD = _script("""
local out = {}
for i = 1, #KEYS, 2 do
  local state = 1
  if redis.call('HGET', KEYS[i + 1], 'r') ~= ARGV[2 + (i + 1) / 2] then
    state = -1
  else
    for _, c in ipairs(redis.call('XPENDING', KEYS[i], ARGV[1])[4] or {}) do
      if c[1] ~= ARGV[2] and c[1] ~= WAITING then state = 0 end
    end
  end
  out[#out + 1] = state
end
return out""")

# KEYS stream, waiting, leases; ARGV group, member, count, "1" where the topic is leased: gives back what this member
# holds, its delivery not counted, and leaves when nothing is left. What it holds of a leased topic stays, in order, for
# the holder of the lease. Returns how many may be left.
LEAVE = _script(
    _IDS
    + """
local rows = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[3], ARGV[2])
if ARGV[4] == '1' and #rows > 0 then
  for _, p in ipairs(rows) do
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, p[1], 'RETRYCOUNT', math.max(p[4] - 1, 0), 'JUSTID')
  end
  return 0
end
for _, p in ipairs(rows) do
  local m, s = parts(p[1])
  local added = redis.pcall('ZADD', KEYS[2], string.format('%.17g', m + math.min(s, 4095) / 4096), p[1])
  if type(added) == 'table' then return 0 end -- out of memory: others take it over after the lease
  local count = math.max(p[4] - 1, 0)
  if not redis.call('XCLAIM', KEYS[1], ARGV[1], WAITING, 0, p[1], 'RETRYCOUNT', count, 'JUSTID')[1] then
    redis.call('ZREM', KEYS[2], p[1])
    redis.call('XACK', KEYS[1], ARGV[1], p[1])
  end
end
if #rows == tonumber(ARGV[3]) then return #rows end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
return 0"""
)

# KEYS stream; ARGV seconds to keep what is settled. A declared retention trims by age, read or not.
# Returns how many were trimmed unread, also by publishers since somebody last asked.
TRIM = _script(
    _NOW
    + _BOUNDS
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local settings = KEYS[1] .. ':settings'
local untold = tonumber(redis.call('HGET', settings, 'untold') or 0)
if untold > 0 then redis.pcall('HDEL', settings, 'untold') end
local read, settled = bounds(KEYS[1])
local function at(seconds) return string.format('%.0f-0', math.max(now() - seconds * 1000, 0)) end
local old = at(tonumber(ARGV[1]))
redis.call('XTRIM', KEYS[1], 'MINID', '~', before(old, settled) and old or settled, 'LIMIT', 20000)
local retention = redis.call('HGET', settings, 'retention')
if not retention then return untold end
old = at(tonumber(retention))
redis.call('XTRIM', KEYS[1], 'MINID', '=', before(old, read) and old or read)
local lost = redis.call('XTRIM', KEYS[1], 'MINID', '=', old)
if lost > 0 then redis.pcall('HINCRBY', settings, 'lost', lost) end
return lost + untold"""
)

# KEYS delayed, its messages; ARGV per message: topic, token, due in ms, body, headers, media, key, which of "k", "m".
# Returns {index, error} of those not stored.
DELAY = _script("""
local out = {}
for i = 1, #ARGV, 8 do
  local member = ARGV[i] .. '\\0' .. ARGV[i + 1]
  local message = cmsgpack.pack({unpack(ARGV, i, i + 7)})
  local r = redis.pcall('HSET', KEYS[2], member, message)
  if type(r) ~= 'table' then r = redis.pcall('ZADD', KEYS[1], ARGV[i + 2], member) end
  if type(r) == 'table' then out[#out + 1] = {(i - 1) / 8, r.err} end
end
return out""")

# KEYS delayed, its messages; ARGV limit. Returns µs to the next (-1: none), and the first error met; a message whose
# topic refuses it is tried again in a minute, behind the others.
PROMOTE = _script(
    _NOW
    + """
local t, failure = now(), false
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text(t), 'LIMIT', 0, ARGV[1])) do
  local packed = redis.call('HGET', KEYS[2], member)
  local r
  if packed then
    local m = cmsgpack.unpack(packed)
    local f = {'b', m[4], 'h', m[5], 't', m[6]}
    if string.find(m[8], 'k', 1, true) then f[#f + 1] = 'k'; f[#f + 1] = m[7] end
    if string.find(m[8], 'm', 1, true) then f[#f + 1] = 'm'; f[#f + 1] = '1' end
    r = redis.pcall('XADD', m[1], '*', unpack(f))
  end
  if type(r) == 'table' and r.err then
    failure = failure or r.err
    redis.pcall('ZADD', KEYS[1], text(t + 60000), member)
  else
    redis.call('ZREM', KEYS[1], member)
    redis.call('HDEL', KEYS[2], member)
  end
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
return {wait(first, t), failure}"""
)

# KEYS delayed, its messages; ARGV member. Returns 1 when it was taken back, before it was due.
CANCEL = _script(
    _NOW
    + """
local due = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not due or tonumber(due) <= now() then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1"""
)

# KEYS row, last revision, index; ARGV name, "1" with a value, value, expected revision or "", ttl in ms or "".
# Returns the revision, or nil when somebody else was quicker. Revisions follow the clock, so that they also rise over
# a server that lost its data.
WRITE = _script(
    _NOW
    + """
local row = redis.call('HMGET', KEYS[1], 'r', 'v')
local found = tonumber(row[1] or 0)
if ARGV[4] ~= '' and tonumber(ARGV[4]) ~= found then return false end
if ARGV[2] ~= '1' then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  return found
end
if found == 0 or row[2] ~= ARGV[3] then
  found = math.max(tonumber(redis.call('GET', KEYS[2]) or 0) + 1, math.floor(now()))
  local revision = string.format('%.0f', found)
  redis.call('SET', KEYS[2], revision)
  redis.call('HSET', KEYS[1], 'r', revision, 'v', ARGV[3])
  redis.call('ZADD', KEYS[3], 0, ARGV[1])
end
if ARGV[5] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[5]) else redis.call('PERSIST', KEYS[1]) end
return found"""
)

# KEYS index; ARGV prefix, prefix of the rows' keys. Returns name, value and revision of each live row.
READ = _script("""
local out = {}
for _, name in ipairs(redis.call('ZRANGEBYLEX', KEYS[1], '[' .. ARGV[1], '(' .. ARGV[1] .. '\\255')) do
  local row = redis.call('HMGET', ARGV[2] .. name, 'v', 'r')
  if row[2] then
    out[#out + 1] = {name, row[1], row[2]}
  else
    redis.call('ZREM', KEYS[1], name)
  end
end
return out""")

# KEYS stream, waiting; ARGV group, id, ms of silence after which a member counts as gone.
# Returns the member that still reads, or nil after the group was moved.
SEEK = _script("""
for _, reply in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local c = {}
  for i = 1, #reply, 2 do c[reply[i]] = reply[i + 1] end
  if c.name ~= WAITING and c.idle < tonumber(ARGV[3]) then return c.name end
end
redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], ARGV[2])
redis.call('DEL', KEYS[2])
return false""")

ALL = (
    SEND, ACK, GIVE, OWN, TAKEOVER, DUE, REAP, GUARD, LEAVE, TRIM, DELAY, PROMOTE, CANCEL, WRITE, READ, SEEK
)  # fmt: skip
TEXT: Mapping[str, str] = MappingProxyType({script.sha: script.text for script in ALL})
