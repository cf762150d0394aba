-- What stands in front of a script in a namespace: it makes TABLE, which has all the global names that the script may use. The
-- sections are put together as the script needs them; words in capitals are filled in. Nothing here can be seen by the script
-- but what is put into TABLE, and no function of the script's is ever called from here: a script can't change what was checked.

--@ begin
local TABLE do

--@ call
-- What is known of commands, by the words that scripts call them by.
local type, rp, sub, known = type, redis.pcall, string.sub, {KNOWN}
local resp3, slow, raise

--@ build
-- What most calls don't need is made when it is needed.
local function build()
  local setmetatable, tonumber, error, pcall, select, unpack = setmetatable, tonumber, error, pcall, select, unpack
  local find, upper, lower, match = string.find, string.upper, string.lower, string.match
  local gmatch, gsub, format, min, random = string.gmatch, string.gsub, string.format, math.min, math.random
  local specs = SPECS

  -- An error of a command's, told of the line that called it: the server's handler would tell of this one.
  function raise(r)
    if not redis.REDIS_VERSION_NUM then error(r.err, 3) end
    local _, at = pcall(error, "", 4)
    local line = match(at, ":(%d+): $")
    local e = {err = r.err, ignore_error_stats_update = r.ignore_error_stats_update}
    if line then
      e = setmetatable(e, {__index = {source = "@user_script", line = line}, __newindex = function() end})
    end
    error(e, 0)
  end

  -- A number as the server writes it among the words of a command.
  local function text(x)
    if x > 0 and x < 9007199254740992 and x % 1 == 0 then return format("%.0f", x) end
    return rp("ECHO", x)
  end

  local function spec(name)
    local _, at = find(specs, "\n" .. name .. "=", 1, true)
    return at and match(specs, "^[^\n]*", at + 1)
  end

  local function shown(word)
    return (gsub(sub(word, 1, 128), "%c", " "))
  end

  local function refused(name, why)
    return {err = "NOPERM '" .. lower(gsub(shown(name), "|", " ")) .. "' " .. why .. "; it is refused in namespace '" .. NAMESPACE .. "' (if it must be, list it in the namespace's allow)"}
  end

--@ build_says
  local function says(word, ...)
    word = upper(word)
    for i = 1, select("#", ...) do
      if word == select(i, ...) then return true end
    end
  end

--@ build_prefix
  local function bare(word)
    if type(word) == "string" and sub(word, 1, LENGTH) == PREFIX then return sub(word, LENGTH + 1) end
    return word
  end

  local function visit(name, a, b, p, kind)
    local word = a[p + 1]
    if kind ~= "e" or (word ~= "#" and find(word, "*", 1, true)) then b[p + 1] = PREFIX .. word end
  end

--@ build_prefix_whole
  -- A list of names, as the script sees it.
  local function mine(list)
    if type(list) ~= "table" or list.err then return list end
    for i = 1, #list do list[i] = bare(list[i]) end
    return list
  end

  local function narrow(pattern)
    return LITERAL .. pattern
  end

--@ build_prefix_names
  local function given(r, reply)
    if type(r) ~= "table" or reply == "n" then return r end
    if r.err then
      local at = find(r.err, "'" .. PREFIX, 1, true)
      if at then r.err = sub(r.err, 1, at) .. sub(r.err, at + 1 + LENGTH) end
    elseif reply == "f" then
      r[1] = bare(r[1])
    elseif reply == "a" then
      for i = 1, #r, 2 do r[i] = bare(r[i]) end
    elseif reply == "s" and r.map then
      local map = {}
      for name, entries in next, r.map do map[bare(name)] = entries end
      r.map = map
    elseif reply == "s" then
      for i = 1, #r do r[i][1] = bare(r[i][1]) end
    end
    return r
  end

--@ build_enforce
  local function owns(word) return OWNS end
  local function sees(word) return SEES end

  local function outside(name, word, kind)
    local what = kind == "t" and "channel" or kind == "e" and "pattern" or "key"
    local why = kind == "w" and sees(word) and "may only be read by" or "is outside of"
    return {err = "NOPERM '" .. lower(gsub(name, "|", " ")) .. "' names the " .. what .. " '" .. shown(word) .. "', which " .. why .. " namespace '" .. NAMESPACE .. "'"}
  end

  local function visit(name, a, b, p, kind)
    local word, inside = a[p + 1]
    if kind == "e" then
      local star = find(word, "*", 1, true)
      inside = word == "#" or not star or sees(sub(word, 1, star - 1))
    elseif kind == "r" then
      inside = sees(word)
    else
      inside = owns(word)
    end
    if not inside and not b.refused then b.refused = outside(name, word, kind) end
  end

--@ build_enforce_whole
  local function mine(list)
    if type(list) ~= "table" or list.err then return list end
    local all = {}
    for i = 1, #list do
      if type(list[i]) == "string" and sees(list[i]) then all[#all + 1] = list[i] end
    end
    return all
  end

  local function narrow(pattern)
    if pattern == "*" then return ALL end
    return pattern
  end

--@ build_enforce_names
  local function given(r) return r end

--@ build_sort
  -- The words of `a` that are names, as the server finds them; places count from nought, the command's own.
  local function sort(name, a, b, n)
    if n > 1 then visit(name, a, b, 1, "r") end
    local p = 2
    while p < n do
      local left = n - p - 1
      if says(a[p + 1], "ASC", "DESC", "ALPHA") then
        p = p + 1
      elseif says(a[p + 1], "LIMIT") and left >= 2 then
        p = p + 3
      elseif says(a[p + 1], "STORE", "BY", "GET") and left >= 1 then
        visit(name, a, b, p + 1, says(a[p + 1], "STORE") and "w" or "e")
        p = p + 2
      else
        p = p + 1
      end
    end
  end

--@ build_radius
  local function radius(name, a, b, n, from)
    if n > 1 then visit(name, a, b, 1, "r") end
    local p = from
    while p < n do
      if says(a[p + 1], "STORE", "STOREDIST") and p + 1 < n then
        p = p + 1
        visit(name, a, b, p, "w")
      end
      p = p + 1
    end
  end

--@ build_streams
  local function streams(name, a, b, n, kind)
    local p = 1
    while p < n do
      local left = n - p - 1
      if says(a[p + 1], "BLOCK", "COUNT", "CLAIM") and left >= 1 then
        p = p + 2
      elseif says(a[p + 1], "STREAMS") and left >= 1 then
        if left % 2 == 0 then
          for key = p + 1, p + left / 2 do visit(name, a, b, key, kind) end
        end
        return
      elseif says(a[p + 1], "GROUP") and left >= 2 then
        p = p + 3
      elseif says(a[p + 1], "NOACK") then
        p = p + 1
      else
        return
      end
    end
  end

--@ build_names
  local function walk(name, a, b, n, op, at, x, y, z)
    if op == "S" then return sort(name, a, b, n) end
    if op == "G" then return radius(name, a, b, n, at) end
    if op == "X" then return streams(name, a, b, n, "r") end
    if op == "Y" then return streams(name, a, b, n, "w") end
    if op == "D" then
      for p = 3, n - 1 do
        if says(a[p + 1], "DB") then b.refused = refused(name, "moves keys between databases") end
      end
      return
    end
    if at >= n then return end
    if op == "R" or op == "W" then
      local count = a[at + x + 1]
      if not count or not (count == "0" or find(count, "^[1-9]%d*$")) then return end
      local from = at + y
      local behind = from + tonumber(count) * z
      if behind > n then return end
      for p = from, behind - 1, z do visit(name, a, b, p, lower(op)) end
      return
    end
    local last = at + x
    if x < 0 and z < 2 then
      last = n + x
    elseif x < 0 then
      last = at + (n - at - (n - at) % z) / z + x
    end
    for p = at, min(last, n - 1), y do visit(name, a, b, p, op) end
  end

  local function named(name, s, a, n)
    local reply, ops = match(s, "^(.):(.*)$")
    local b = {unpack(a, 1, n)}
    for op, at, x, y, z in gmatch(ops, "(%a)(%d*),?(-?%d*),?(%d*),?(%d*);") do
      walk(name, a, b, n, op, tonumber(at), tonumber(x), tonumber(y), tonumber(z))
    end
    if b.refused then return b.refused end
    return given(rp(unpack(b, 1, n)), reply)
  end

--@ build_whole
  -- Commands about the whole database.
  local function scan(a, n)
    if n < 2 then return rp(a[1]) end
    local b, pattern, p = {a[1], a[2]}, "*", 3
    while p < n do
      if says(a[p], "MATCH") then
        pattern = a[p + 1]
      else
        b[#b + 1] = a[p]
        b[#b + 1] = a[p + 1]
      end
      p = p + 2
    end
    if p == n then b[#b + 1] = a[p] end
    b[#b + 1] = "MATCH"
    b[#b + 1] = narrow(pattern)
    local r = rp(unpack(b))
    if type(r) == "table" and r[2] then r[2] = mine(r[2]) end
    return r
  end

  -- All names, of which those are wanted that fit one of `patterns`.
  local function all(patterns)
    local list = {}
    for i = 1, #patterns do
      local r = rp("KEYS", patterns[i])
      if r.err then return r end
      for j = 1, #r do list[#list + 1] = r[j] end
    end
    return list
  end

  local function any()
    for _ = 1, 16 do
      local r = rp("RANDOMKEY")
      if type(r) ~= "string" then return r end
      local found = mine({r})[1]
      if found and (PREFIX == "" or found ~= r) then return found end
    end
    local list = all({PATTERNS})
    if list.err then return list end
    if #list > 0 then return mine({list[random(#list)]})[1] end
    if resp3 then return nil end
    return false
  end

  local function flush(a, n)
    if n > 2 or (n == 2 and not says(a[2], "ASYNC", "SYNC")) then return {err = "ERR syntax error"} end
    local list = all({OWN})
    if list.err then return list end
    for i = 1, #list, 1000 do
      local r = rp("UNLINK", unpack(list, i, min(i + 999, #list)))
      if type(r) == "table" and r.err then return r end
    end
    return {ok = "OK"}
  end

  -- The counts of all keys are not for the script.
  local function told(r)
    if type(r) == "string" then return (gsub(r, "\ndb%d+:[^\n]*", "")) end
    if type(r) == "table" and r.verbatim_string then
      r.verbatim_string.string = gsub(r.verbatim_string.string, "\ndb%d+:[^\n]*", "")
    end
    return r
  end

  local function whole(kind, a, n)
    if kind == "wS" then return scan(a, n) end
    if kind == "wF" then return flush(a, n) end
    if kind == "wI" then return told(rp(unpack(a, 1, n))) end
    if kind == "wC" then
      if n > 3 then return {err = "ERR syntax error"} end
      return mine(rp(a[1], a[2], narrow(a[3] or "*")))
    end
    if n ~= (kind == "wK" and 2 or 1) then return rp(unpack(a, 1, n)) end
    if kind == "wK" then return mine(rp("KEYS", narrow(a[2]))) end
    if kind == "wR" then return any() end
    local list = all({PATTERNS})
    return list.err and list or #list
  end

--@ build_end
  function slow(c, k, ...)
    local n = select("#", ...)
    if k ~= nil or n > 0 then
      n = n + 2
    elseif c == nil then
      return rp()
    else
      n = 1
    end
    local a = {c, k, ...}
    for i = 1, n do
      local t = type(a[i])
      if t == "number" then a[i] = text(a[i]) end
      -- The server's own words for a wrong argument.
      if type(a[i]) ~= "string" then return rp({}) end
    end
    local name = upper(a[1])
    local s
    if find(name, "^[%w._-]+$") then s = spec(name) end
    if s == "+" then
      if n == 1 then return rp(a[1]) end
      name, s = name .. "|" .. upper(a[2]), nil
      if find(a[2], "^[%w._-]+$") then s = spec(name) end
    elseif s then
      known[a[1]] = s
    end
    if not s then return refused(a[1], "is not known to tidegate, which can't tell what it touches") end
    local kind = sub(s, 1, 1)
    if s == "-" then return rp(unpack(a, 1, n)) end
    if s == "x" then return {err = "ERR This Redis command is not allowed from script"} end
    if kind == "w" then return whole(s, a, n) end
    if s == "!0" then
      return {err = "NOPERM '" .. lower(gsub(name, "|", " ")) .. "' may write, and namespace '" .. NAMESPACE .. "' may only be read"}
    end
    if kind == "!" then return refused(name, ({REASONS})[tonumber(sub(s, 2))]) end
    -- A key that is nil: a script that calls a command without any would not work, either.
    if n == 1 then return rp({}) end
    if #s > 1 then return named(name, s, a, n) end
    local b, last = {unpack(a, 1, n)}, (s == "1" or s == "2") and 1 or n - 1
    for p = 1, last do visit(name, a, b, p, (s == "1" or s == "3") and "w" or "r") end
    if b.refused then return b.refused end
    return rp(unpack(b, 1, n))
  end
end

--@ pcall
local function redis_pcall(c, k, ...)
  if type(k) == "string" and FAST then return rp(c, GIVEN, ...) end
  if not slow then build() end
  return slow(c, k, ...)
end

--@ caller
local function redis_call(c, k, ...)
  local r
  if type(k) == "string" and FAST then
    r = rp(c, GIVEN, ...)
  else
    if not slow then build() end
    r = slow(c, k, ...)
  end
  if type(r) == "table" and r.err then
    if not slow then build() end
    raise(r)
  end
  return r
end

--@ keys
local keys = {}
do
  local sub, all = string.sub, KEYS
  for i = 1, #all do
    if sub(all[i], 1, LENGTH) ~= PREFIX then error("a key of the script's is outside of its namespace") end
    keys[i] = sub(all[i], LENGTH + 1)
  end
end

--@ sealed
local sealed = redis.REDIS_VERSION_NUM and math
if not sealed then
  local tostring, error = tostring, error
  sealed = function(_, name) error("Script attempted to create global variable '" .. tostring(name) .. "'", 2) end
end

--@ library
-- Libraries can't be changed since Redis 7; before, a script gets copies.
local function library(it)
  if redis.REDIS_VERSION_NUM then return it end
  local copy = {}
  for name, member in pairs(it) do copy[name] = member end
  return copy
end

--@ getmetatable
local getmetatable_of_table
do
  local type, getmetatable = type, getmetatable
  getmetatable_of_table = function(it) if type(it) == "table" then return getmetatable(it) end end
end

--@ seal
local inside, names = TABLE, TABLE
do
  local error, tostring = error, tostring
  TABLE = setmetatable({}, {__newindex = sealed, __index = function(_, name)
    local it = inside[name]
    if it == nil then error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2) end
    return it
  end})
  inside._G = TABLE
end

--@ end
end
