-- One exchange of a gateway with the arbiter of plain limits. serving/policy/bucket.py and promises.py are the same
-- arithmetic.
-- KEYS: penstock:epoch, penstock:gws, penstock:grace-until, then one key per limit (penstock:grant:<id> or penstock:held:<id>).
-- ARGV[1]: msgpack {g=gateway, e=a name for a new epoch, life=ms, grace=ms, silence=ms, l={limit...}, a={ask...}}
--   limit: {'r', capacity, own lease left, lease kept, {{difference, charged at}...}, lease wanted, last known level,
--           whether the capacity may be an old one, ms in which the capacity drains}
--          {'c', capacity, own requests in flight, free seats kept, free seats wanted, seats left since the last time}
--          {'b', capacity, own estimates running, lease kept, lease wanted, {{minute, ended in it}...}, base, until, ms}:
--           a budget's period, of which the books have base up to the minute until; it is kept for so many ms
--   ask:   {who asks ('': nothing is promised), whether it is asked for the last time, {{index of limit, amount}...},
--           its name, whether it may wait in line}, all or nothing
-- Answer: msgpack {now ms, epoch, live gateways, ms of grace left, {{level, others' leases, lease given, own}...}, {ask answer...}}
--   own: the gateway's part of the level, seats or lease; of a budget base and until follow, of seats how many places
--   the line has
--   ask answer: 0 granted, 1 undecided (grace), or {index of limit, wait ms, remaining, others' leases; -1: it is in
--   line}
local WINDOW, VALLEYS, TOLERANCE = 60000, 40, 1e-9
local HOLD, MOST, FIRM, LARGER = 3000, 200, 20, 1.25
-- serving/policy/seats.py
local ALIVE, KEPT, MARGIN, SOONEST = 1000, 64, 1.1, 150
local request = cmsgpack.unpack(ARGV[1])
local me = request.g
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000

local function text(number) return string.format('%.17g', number) end

local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = request.e .. '.' .. string.format('%.0f', math.floor(now))
  redis.call('SET', KEYS[1], epoch)
end
local made = tonumber(string.match(epoch, '%.(%d+)$') or '0')
local grace = 0
if now >= made then grace = math.max(0, made + request.grace - now) end
-- Gateways write here every 100 ms: after a silence the state was away, and what they did meanwhile is yet to be told.
local newest = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
if newest and now - newest > request.silence then
  redis.call('SET', KEYS[3], text(now + request.grace), 'PX', request.grace)
end
local told_by = redis.call('GET', KEYS[3])
if told_by and told_by - now <= request.grace then grace = math.max(grace, told_by - now) end
local in_grace = grace > 0
redis.call('ZADD', KEYS[2], text(now), me)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now - 30000))
local gateways = redis.call('ZRANGEBYSCORE', KEYS[2], text(now - request.life), '+inf')
local is_live = {}
for _, name in ipairs(gateways) do is_live[name] = true end

local function charge(b, amount)
  local depth = b.level + b.refunded
  while #b.valleys > 0 and b.valleys[#b.valleys][2] >= depth do table.remove(b.valleys) end
  table.insert(b.valleys, {now, depth})
  if #b.valleys > VALLEYS then
    local closest, gap
    for i = 1, #b.valleys - 1 do
      local between = b.valleys[i + 1][2] - b.valleys[i][2]
      if not gap or between < gap then closest, gap = i, between end
    end
    b.valleys[closest][1] = b.valleys[closest + 1][1]
    table.remove(b.valleys, closest + 1)
  end
  b.level = b.level + amount
end

local function refund(b, amount, charged_at)
  local least = b.level + b.refunded
  for _, valley in ipairs(b.valleys) do
    if valley[1] > charged_at then
      least = math.min(least, valley[2])
      break
    end
  end
  local given = math.min(amount, math.max(0, least - b.refunded), b.level)
  b.level = b.level - given
  b.refunded = b.refunded + given
end

-- The bucket keeps the capacity that requests last came with: whoever only settles may know a value long changed, and
-- must not drain the bucket by it.
local function load_rate(key, capacity, is_old, window)
  local b = {key = key, level = 0, refunded = 0, valleys = {}, leases = {}, others = 0, own = 0, given = 0,
             book = {}}
  local fields, at = redis.call('HGETALL', key), now
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'level' then b.level = tonumber(value)
    elseif name == 'at' then at = tonumber(value)
    elseif name == 'refunded' then b.refunded = tonumber(value)
    elseif name == 'valleys' then b.valleys = cmsgpack.unpack(value)
    elseif name == 'capacity' then b.kept = tonumber(value)
    elseif name == 'window' then b.window, b.has_window = tonumber(value), true
    elseif name == 'promises' then
      for _, promise in ipairs(cmsgpack.unpack(value)) do
        if promise[1] + HOLD > now then b.book[#b.book + 1] = promise end
      end
      b.has_book = true
    else b.leases[string.sub(name, 7)] = tonumber(value) end
  end
  local until_now = b.kept or capacity
  local window_until_now = b.kept and (b.window or WINDOW) or window
  b.level = math.max(0, b.level - until_now / window_until_now * math.max(0, now - at))
  if not is_old then b.kept, b.window = capacity, window end
  b.capacity = is_old and until_now or capacity
  b.rate = b.capacity / (is_old and window_until_now or window)
  return b
end

local function report_rate(b, left, kept, settlements, known)
  -- A dead gateway's lease counts as used: nobody can say that it was not.
  for name, amount in pairs(b.leases) do
    if name == me then
      if amount > left then charge(b, amount - left) end
    elseif is_live[name] then b.others = b.others + amount
    else
      charge(b, amount)
      redis.call('HDEL', b.key, 'lease:' .. name)
    end
  end
  b.own = kept
  -- Before the settlements: what is known does not have them yet. It has all leases, this gateway's as it was.
  local standing = b.level + left + b.others
  if in_grace and known > standing then charge(b, known - standing) end
  for _, settlement in ipairs(settlements) do
    if settlement[1] > 0 then charge(b, settlement[1]) else refund(b, -settlement[1], settlement[2]) end
  end
end

local function save_rate(b)
  local lease = 'lease:' .. me
  if b.own > 0 then redis.call('HSET', b.key, lease, text(b.own)) else redis.call('HDEL', b.key, lease) end
  if b.level <= 0 and b.own <= 0 and b.others <= 0 and #b.book == 0 then
    redis.call('DEL', b.key)
    return
  end
  redis.call('HSET', b.key, 'level', text(b.level), 'at', text(now), 'refunded', text(b.refunded),
             'valleys', cmsgpack.pack(b.valleys))
  if b.kept then
    redis.call('HSET', b.key, 'capacity', text(b.kept))
    if b.window and b.window ~= WINDOW then redis.call('HSET', b.key, 'window', text(b.window))
    elseif b.has_window then redis.call('HDEL', b.key, 'window') end
  end
  if #b.book > 0 then redis.call('HSET', b.key, 'promises', cmsgpack.pack(b.book))
  elseif b.has_book then redis.call('HDEL', b.key, 'promises') end
  local empty_in = b.rate > 0 and b.level / b.rate or 0
  if #b.book > 0 then empty_in = math.max(empty_in, b.book[#b.book][1] - now) end
  redis.call('PEXPIRE', b.key, string.format('%.0f', math.min(empty_in, 86400000) + 10000))
end

-- Seats: field <gateway> holds its requests in flight, free:<gateway> the free seats leased to it. Those of a dead
-- gateway are removed: they are free. line: holds {{due, until, who, ask, waits}...}, pace: {at, running, work, ends}.
local function load_held(key, capacity, own, kept, ended)
  local b = {key = key, is_seats = true, capacity = capacity, held = own, own = kept, taken = 0, others = 0, given = 0,
             line = {}, pace = {now, 0, 0, 0}}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local field, count = fields[i], tonumber(fields[i + 1])
    local leaser = string.match(field, '^free:(.*)$')
    local name = leaser or field
    if field == 'line:' then
      for _, turn in ipairs(cmsgpack.unpack(fields[i + 1])) do
        if turn[2] > now then b.line[#b.line + 1] = turn end
      end
      b.has_line = true
    elseif field == 'pace:' then b.pace = cmsgpack.unpack(fields[i + 1])
    elseif not is_live[name] then redis.call('HDEL', key, field)
    elseif name ~= me then
      if leaser then b.others = b.others + count else b.taken = b.taken + count end
    end
  end
  local work = b.pace[3] + b.pace[2] * math.max(0, now - b.pace[1])
  local ends = b.pace[4] + ended
  if ends > KEPT then work, ends = work * KEPT / ends, KEPT end
  b.pace = {now, b.pace[2], work, ends}
  return b
end

local function committed_seats(b) return b.held + b.own + b.taken + b.others end

local function save_held(b)
  if b.held > 0 then redis.call('HSET', b.key, me, b.held) else redis.call('HDEL', b.key, me) end
  if b.own > 0 then redis.call('HSET', b.key, 'free:' .. me, b.own) else redis.call('HDEL', b.key, 'free:' .. me) end
  if #b.line > 0 then redis.call('HSET', b.key, 'line:', cmsgpack.pack(b.line))
  elseif b.has_line then redis.call('HDEL', b.key, 'line:') end
  b.pace[2] = b.held + b.taken
  redis.call('HSET', b.key, 'pace:', cmsgpack.pack(b.pace))
  local last = #b.line > 0 and b.line[#b.line][2] - now or 0
  redis.call('PEXPIRE', b.key, string.format('%.0f', math.max(last, 60000)))
end

-- Where the request stands in line: its own place, or the first of its key whose turn has come and for which no other
-- request waits.
local function place_of(b, ask)
  if ask[1] == '' then return nil end
  local free
  for i, turn in ipairs(b.line) do
    if turn[3] == ask[1] then
      if turn[4] == ask[4] then return i end
      if not free and turn[4] == '' and turn[1] <= now then free = i end
    end
  end
  return free
end

-- Whether a seat is free for it beside those before it who wait for one.
local function has_seat(b, amount, place)
  local free = b.capacity - committed_seats(b) - amount
  for i = 1, place and place - 1 or #b.line do
    if b.line[i][5] and b.line[i][1] <= now then free = free - 1 end
  end
  return free >= 0
end

-- Behind all who have a place, but such as are due so late that one more before them changes nothing.
local function seat_wait(b)
  if b.pace[4] < 1 or b.capacity < 1 then return nil end
  local step, free = MARGIN * b.pace[3] / b.pace[4] / b.capacity, math.max(0, b.capacity - committed_seats(b))
  local place = #b.line
  local function comes() return step * math.max(1, place + 1 - free) + SOONEST end
  while place > 0 and b.line[place][1] - now >= comes() do place = place - 1 end
  return place > 0 and math.max(comes(), b.line[place][1] - now) or comes()
end

-- A budget: what the books have up to a minute, and what each gateway has told since: field <gateway> holds {estimates
-- running, lease, {{minute, ended in it}...}, minute of telling}. Of a dead gateway it is kept until the books have its
-- last minute: then they have all that it left.
local function later_than(minutes, first)
  local sum, kept = 0, {}
  for _, entry in ipairs(minutes) do
    if entry[1] >= first then
      sum, kept[#kept + 1] = sum + entry[2], entry
    end
  end
  return sum, kept
end

local function load_budget(key, limit)
  local b = {key = key, is_budget = true, capacity = limit[2], running = limit[3], own = limit[4], base = limit[7],
             first = limit[8], kept_ms = limit[9], used = 0, others = 0, given = 0}
  local told, fields = {}, redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    if fields[i] == 'books' then
      local books = cmsgpack.unpack(fields[i + 1])
      if books[2] >= b.first then b.base, b.first = books[1], books[2] end
    else told[fields[i]] = cmsgpack.unpack(fields[i + 1]) end
  end
  for name, entry in pairs(told) do
    if name ~= me then
      if not is_live[name] and b.first > entry[4] + 1 then redis.call('HDEL', key, name)
      else
        b.used = b.used + entry[1] + later_than(entry[3], b.first)
        -- Nobody can say how much of a dead gateway's lease was used, until the books do.
        if is_live[name] then b.others = b.others + entry[2] else b.used = b.used + entry[2] end
      end
    end
  end
  local ended
  ended, b.minutes = later_than(limit[6], b.first)
  b.used = b.used + ended
  return b
end

local function save_budget(b)
  if b.running > 0 or b.own > 0 or #b.minutes > 0 then
    redis.call('HSET', b.key, me, cmsgpack.pack({b.running, b.own, b.minutes, math.floor(now / 60000)}))
  else redis.call('HDEL', b.key, me) end
  if b.first > 0 then redis.call('HSET', b.key, 'books', cmsgpack.pack({b.base, b.first})) end
  redis.call('PEXPIRE', b.key, string.format('%.0f', b.kept_ms))
end

local limits = {}
for i, limit in ipairs(request.l) do
  if limit[1] == 'r' then
    limits[i] = load_rate(KEYS[i + 3], limit[2], limit[8], limit[9] or WINDOW)
    report_rate(limits[i], limit[3], limit[4], limit[5], limit[7])
  elseif limit[1] == 'b' then limits[i] = load_budget(KEYS[i + 3], limit)
  else limits[i] = load_held(KEYS[i + 3], limit[2], limit[3], limit[4], limit[6] or 0) end
end

local function committed(b)
  if b.is_budget then return b.base + b.used + b.running + b.own + b.others end
  return b.level + b.own + b.others
end

local function fits(level, amount, capacity)
  if capacity <= 0 then return false end
  if amount > capacity + TOLERANCE * capacity then return level <= TOLERANCE * capacity end
  return level + amount <= capacity + TOLERANCE * capacity
end

-- Promises are {due, amount, who, soft}: a soft one binds its key alone.
local function binds(promise, who) return not promise[4] or promise[3] == who end

-- Whether the amount may be admitted now, and the place of the promise that it was made for.
local function admits(b, amount, who)
  if not fits(committed(b), amount, b.capacity) then return false end
  local own
  for i, promise in ipairs(b.book) do
    if promise[3] == who and amount <= promise[2] * LARGER then
      own = i
      break
    end
  end
  local ahead, at = committed(b) + amount, now
  for i, promise in ipairs(b.book) do
    if i == own and not promise[4] then break end
    if binds(promise, who) and not (promise[4] and own and i >= own) then
      local due = math.max(now, promise[1])
      ahead, at = math.max(0, ahead - b.rate * (due - at)), due
      if not fits(ahead, promise[2], b.capacity) then return false end
      ahead = ahead + promise[2]
    end
  end
  return true, own
end

-- Milliseconds until the amount fits, with all that binds whoever asks charged when it is due, and fits beside it.
local function wait_of(b, amount, who)
  if b.capacity <= 0 or b.rate <= 0 then return b.window or WINDOW end
  local at, level, spare, book = {now}, {committed(b)}, {}, {}
  for _, promise in ipairs(b.book) do
    if binds(promise, who) then book[#book + 1] = promise end
  end
  for i, promise in ipairs(book) do
    local due = math.max(now, promise[1])
    local ahead = math.max(0, level[i] - b.rate * (due - at[i]))
    spare[i] = promise[2] > b.capacity and -ahead or b.capacity - ahead - promise[2]
    at[i + 1], level[i + 1] = due, ahead + promise[2]
  end
  local place = #book + 1
  while place > 1 and spare[place - 1] + TOLERANCE * b.capacity >= amount do place = place - 1 end
  while true do
    local excess = amount > b.capacity and level[place] or level[place] + amount - b.capacity
    local free = at[place] + math.max(0, excess) / b.rate
    if place > #book or free <= at[place + 1] then return free - now end
    place = place + 1
  end
end

local function promise(ask, wait)
  for _, demand in ipairs(ask[3]) do
    local book, line = limits[demand[1]].book, limits[demand[1]].line
    local last = line and line[MOST]
    -- In a full line the last makes way for whoever is due before it.
    if last and last[4] == '' and last[1] > now + wait then table.remove(line) end
    if line and #line < MOST then
      local place = #line + 1
      while place > 1 and line[place - 1][1] > now + wait do place = place - 1 end
      table.insert(line, place, {now + wait, now + wait + HOLD, ask[1], '', false})
    end
    if book then
      local firm, last_soft = 0, nil
      for i, made in ipairs(book) do
        if made[4] then last_soft = i elseif made[3] == ask[1] then firm = firm + 1 end
      end
      local soft = firm >= FIRM
      if #book >= MOST and not soft and last_soft then table.remove(book, last_soft) end
      if #book < MOST then
        local place = #book + 1
        while place > 1 and book[place - 1][1] > now + wait do place = place - 1 end
        table.insert(book, place, {now + wait, demand[2], ask[1], soft})
      end
    end
  end
end

-- What stands in the way: of several limits the one that does for the longest.
local function obstacle(ask)
  local found, leased
  local short = {}
  for _, demand in ipairs(ask[3]) do
    local b, amount = limits[demand[1]], demand[2]
    if b.is_seats then
      local place = place_of(b, ask)
      if not has_seat(b, amount, place) then
        local wait, left = seat_wait(b), math.max(0, b.capacity - committed_seats(b))
        -- Nothing has ended yet: nobody can say when something will.
        if not wait then return {demand[1], 1000, left, b.others} end
        leased, short[b] = leased or b.others > 0, true
        if not found or wait > found[2] then found = {demand[1], wait, left, b.others, place ~= nil} end
      end
    elseif b.is_budget then
      local taken = committed(b)
      if taken + amount > b.capacity * (1 + TOLERANCE) then
        return {demand[1], 0, math.max(0, b.capacity - taken), b.others}
      end
    elseif not admits(b, amount, ask[1]) then
      local wait = wait_of(b, amount, ask[1])
      leased = leased or b.others > 0
      if not found or wait > found[2] then
        found = {demand[1], wait, math.max(0, b.capacity - committed(b)), b.others}
      end
    end
  end
  if not found then return nil end
  local waits = found[5] and ask[5]
  found[5] = nil
  for _, demand in ipairs(ask[3]) do
    local b = limits[demand[1]]
    local place = b.line and place_of(b, ask)
    if place then
      -- A seat that it could have, were it not for another limit, is not kept for it.
      if waits then b.line[place] = {b.line[place][1], now + ALIVE, ask[1], ask[4], short[b] or false}
      else table.remove(b.line, place) end
    end
  end
  if waits then
    found[4] = -1
    return found
  end
  if ask[1] ~= '' and (ask[2] or not leased) then
    -- When it comes again it is to fit into all of them.
    for _, demand in ipairs(ask[3]) do
      local b = limits[demand[1]]
      if b.book then found[2] = math.max(found[2], wait_of(b, demand[2], ask[1])) end
    end
    promise(ask, found[2])
  end
  return found
end

local function charge_all(ask)
  for _, demand in ipairs(ask[3]) do
    local b = limits[demand[1]]
    if b.is_seats then
      local place = place_of(b, ask)
      if place then table.remove(b.line, place) end
      b.held = b.held + demand[2]
    elseif b.is_budget then b.running = b.running + demand[2]
    else
      local _, own = admits(b, demand[2], ask[1])
      if own then table.remove(b.book, own) end
      charge(b, demand[2])
    end
  end
end

local answers = {}
for i, ask in ipairs(request.a) do
  local refused = in_grace and 1 or obstacle(ask)
  if not refused then charge_all(ask) end
  answers[i] = refused or 0
end

local reports = {}
for i, limit in ipairs(request.l) do
  local b = limits[i]
  if b.is_seats then
    if limit[5] > 0 and not in_grace and #b.line == 0 then
      local room = b.capacity * 0.875 - committed_seats(b)
      b.given = math.max(0, math.floor(math.min(limit[5], room / #gateways)))
      b.own = b.own + b.given
    end
    save_held(b)
    reports[i] = {committed_seats(b), b.others, b.given, b.held + b.own, #b.line}
  elseif b.is_budget then
    if limit[5] > 0 and not in_grace then
      b.given = math.max(0, math.min(limit[5], (b.capacity * 0.875 - committed(b)) / #gateways))
      b.own = b.own + b.given
    end
    save_budget(b)
    reports[i] = {committed(b), b.others, b.given, b.own, b.base, b.first}
  else
    -- The last eighth is never leased, and nothing while anybody was promised: then every decision is made here.
    if limit[6] > 0 and not in_grace and #b.book == 0 then
      local room = b.capacity * 0.875 - b.level - b.own - b.others
      b.given = math.max(0, math.min(limit[6], room / #gateways))
      b.own = b.own + b.given
    end
    save_rate(b)
    reports[i] = {b.level + b.own + b.others, b.others, b.given, b.own}
  end
end
return cmsgpack.pack({now, epoch, gateways, grace, reports, answers})
