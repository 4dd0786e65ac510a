-- Every change of a balance, in one script: a batch of independent operations, each validated before it writes.
--
-- KEYS, five an operation, all in one billing partition:  m (partition state), x (open holds), o (outbox), w (wallet), h (record);
-- an operation on several reports (G) has the record of each in place of h
--   {pNNNN}:m          HASH    state (ready|recovering)  ep (epoch)  pseq (outbox sequence)
--   {pNNNN}:x          ZSET    request_id -> lease end, ms
--   {pNNNN}:o          STREAM  id <ep>-<pseq>, fields s (packed facts) and r (the row, opaque)
--   {pNNNN}:w:<wallet> HASH    pa fa (available: plan, funds)  ph fh (held)  debt  seq  settled  credited (net of what ended)  lots
--                              t:<meter>:<cycle> (tier counters)
--                              xs (earliest expiry of a lot, s; 0 = look at once; absent = none expires)  pin (see Pins; mostly absent)
--   {pNNNN}:h:<id>     STRING  "H|plan|funds|od|marks|fingerprint|wallet|row" while held, "S|charge|fingerprint" once ended, "C|amount"
--                              marks: 1 = linked to the plan, 2 = has scopes, 3 = both;  fingerprint: of the reserve, and
--                              ";<seq>", the wallet's at that moment
--   {pNNNN}:r:<digest> STRING  a report's record, "S|charge|fingerprint|id|outbox entry|position|flags|at_ms". The one key outside its
--                              wallet's partition: a report's id is its merchant's own, whoever pays, so the id alone places it
--   {pNNNN}:q:<id>     STRING  a hold's scopes, only while held and only where it has some: "key;ceiling;tokens;cycle;spend_max|..."
--   {pNNNN}:l:<scope>  HASH    limits' counters of a spend key or connection, which live and end with the holds:
--                              ep open so (in this epoch: open holds and the sum of their ceilings)  tr ts (all calls, all charges)
--                              rcy rc (calls of a cycle)  scy sp (settled charges of a cycle)  lu (last used, ms of business time)
--                              rt ra, tt ta (buckets of calls and of tokens: level in 60,000ths, at which ms of TIME)
-- ARGV: number of operations, then per operation its letter and its arguments (listed at each function).
-- Amounts are nano-USD as decimal strings; |amount| <= 9e15 so that Lua's doubles are exact (2^53 = 9.007e15).
-- Business time comes in as an argument (at_ms; '' = do not look for expired lots); TIME is used for leases and rate windows only.
-- Returns one array an operation: { code, ... } (listed at each function); E... means that nothing was changed, except E500 text:
-- the operation failed in a way that should not exist (a key of another type, out of memory); its neighbours are not hurt.
-- Keeps, per wallet: pa+ph = sum(plan lots); fa+fh = sum(funds lots) - debt; pa+fa+ph+fh + settled = credited;
-- every settle, credit, renewal, adjustment and end of a lot bumps seq by one and appends exactly one outbox entry.
--
-- Pins. Open holds are taken to use a pot's lots in burn order. A lot that ends while holds use it leaves what they use behind as a
-- pin, a lot of its own ("q:<seq>" of plan, "g:<seq>" of funds, seq of the entry that ended it). Only holds that were open at that
-- moment may burn it, and what they do not use ends with them: field `pin` has, per pin, the sum of those holds ("q:<seq>=<sum>"),
-- and pins up to a seq never sum to more than the holds of that seq. So nothing that has ended becomes spendable again, and no call
-- that was covered when it began is charged twice for what ended meanwhile.

local MAX = 9000000000000000
local COUNTER_MAX = 9007199254740991
local t = redis.call('TIME')
local now_ms = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)

-- Whole numbers as text; %d is the faster one, and takes no more than 64 bits.
local function str(n)
  if n > -COUNTER_MAX and n < COUNTER_MAX then return string.format('%d', n) end
  return string.format('%.0f', n)
end
local function num(s) return tonumber(s or '0') end

-- An amount from ARGV: an integer within bounds, or nil.
local function amount(s)
  local n = tonumber(s)
  if n == nil or n ~= math.floor(n) or n < 0 or n > MAX then return nil end
  return n
end

-- The partition's epoch when it is ready, else false; read once a call.
local epochs = {}
local function ready(m)
  if epochs[m] == nil then
    local meta = redis.call('HMGET', m, 'state', 'ep')
    epochs[m] = meta[1] == 'ready' and meta[2] or false
  end
  return epochs[m]
end

-- Appends one outbox entry; packed facts:
--   kind|id|wallet|wseq|amount|balance|plan|funds|position|flags|debt|at_ms|plan_total|pinned|opened
--   (An earlier release had the last three in a field e of their own, and before that none of them.)
--   kind: s settle, c credit, n renew, a adjust, x end of a lot.  plan_total: the plan pot afterwards, held amounts included.
--   pinned: what became a pin (n, x), negative when a pin ended.  opened: the hold's seq, where it may have burnt pins (s).
local function emit(m, o, kind, id, wallet, seq, delta, balance, plan, funds, position, flags, debt, row, plan_total, pinned, opened)
  if not plan_total then  -- as the operation has just written it
    local pots = redis.call('HMGET', string.match(m, '^(.*):m$') .. ':w:' .. wallet, 'pa', 'ph')
    plan_total = num(pots[1]) + num(pots[2])
  end
  local pseq = redis.call('HINCRBY', m, 'pseq', 1)
  redis.call('XADD', o, epochs[m] .. '-' .. str(pseq), 's',
    table.concat({ kind, id, wallet, str(seq), str(delta), str(balance), str(plan), str(funds), str(position), flags,
      str(debt), str(now_ms), str(plan_total), str(pinned or 0), opened and str(opened) or '' }, '|'), 'r', row)
end

-- Lots: "<pot>:<priority>:<expires_s>:<created_ms>:<lot_id>=<remaining>" joined by ','; sorted, so burn order is the string
-- order (numbers are zero-padded by the caller). Takes `take` from the pot's lots; returns the new string and what was short.
local function burn(lots, pot, take)
  if take == 0 or lots == '' then return lots, take end
  local kept = {}
  for lot in string.gmatch(lots, '[^,]+') do
    if take > 0 and string.sub(lot, 1, 1) == pot then
      local eq = string.find(lot, '=', 1, true)
      local left = tonumber(string.sub(lot, eq + 1))
      local used = math.min(left, take)
      take = take - used
      if left > used then kept[#kept + 1] = string.sub(lot, 1, eq) .. str(left - used) end
    else
      kept[#kept + 1] = lot
    end
  end
  return table.concat(kept, ','), take
end

local function insert_lot(lots, key, remaining)
  local all = {}
  for lot in string.gmatch(lots, '[^,]+') do all[#all + 1] = lot end
  all[#all + 1] = key .. '=' .. str(remaining)
  table.sort(all)
  return table.concat(all, ',')
end

local NEVER = 99999999999  -- expires_s of a lot that does not expire
local AVAILABLE, HELD, PIN, POT = { p = 'pa', f = 'fa' }, { p = 'ph', f = 'fh' }, { p = 'q', f = 'g' }, { q = 'p', g = 'f' }

local function letter(key) return string.sub(key, 1, 1) end
local function expiry(lot_key) return tonumber(string.match(lot_key, '^%a:%d+:(%d+):')) or NEVER end
local function pin_seq(pin_key) return tonumber(string.sub(pin_key, 3)) end

-- "key=number,..." as an array of { key, n }, and back (sorted; what is nothing is left out).
local function parse(list)
  local all = {}
  for item in string.gmatch(list or '', '[^,]+') do
    local eq = string.find(item, '=', 1, true)
    all[#all + 1] = { key = string.sub(item, 1, eq - 1), n = tonumber(string.sub(item, eq + 1)) }
  end
  return all
end

local function join(all)
  local kept = {}
  for _, lot in ipairs(all) do
    if lot.n > 0 then kept[#kept + 1] = lot.key .. '=' .. str(lot.n) end
  end
  table.sort(kept)
  return table.concat(kept, ',')
end

-- A wallet as a table, for the operations that are not on the path of a call; nil when there is none. `save` writes it back.
local function load(k)
  local f = redis.call('HMGET', k.w, 'seq', 'pa', 'fa', 'ph', 'fh', 'debt', 'lots', 'pin')
  if not f[1] then return nil end
  return { seq = num(f[1]), pa = num(f[2]), fa = num(f[3]), ph = num(f[4]), fh = num(f[5]), debt = num(f[6]), lots = parse(f[7]),
    pins = parse(f[8]), net = 0 }  -- net: change of `credited`
end

local function balance_of(s) return s.pa + s.fa + s.ph + s.fh end

local function save(k, s)
  local first = NEVER
  for _, lot in ipairs(s.lots) do
    if lot.n > 0 then first = math.min(first, expiry(lot.key)) end
  end
  redis.call('HSET', k.w, 'seq', str(s.seq), 'pa', str(s.pa), 'fa', str(s.fa), 'debt', str(s.debt), 'lots', join(s.lots))
  if s.net ~= 0 then redis.call('HINCRBY', k.w, 'credited', str(s.net)) end
  local pins = join(s.pins)
  if pins ~= '' then redis.call('HSET', k.w, 'pin', pins) else redis.call('HDEL', k.w, 'pin') end
  if first < NEVER then redis.call('HSET', k.w, 'xs', str(first)) else redis.call('HDEL', k.w, 'xs') end
end

local function add_lot(s, key, n)
  s.lots[#s.lots + 1] = { key = key, n = n }
  table.sort(s.lots, function(a, b) return a.key < b.key end)
end

-- What open holds use of each live lot of a pot: the holds, less what is pinned already, laid over the lots in burn order.
local function covered(s, pot)
  local left, found = s[HELD[pot]], {}
  for _, lot in ipairs(s.lots) do
    if letter(lot.key) == PIN[pot] then left = left - lot.n end
  end
  for _, lot in ipairs(s.lots) do
    if letter(lot.key) == pot then
      found[lot.key] = math.max(0, math.min(left, lot.n))
      left = left - found[lot.key]
    end
  end
  return found
end

-- Ends the live lots of a pot that is_ending(key) names: { ended } at once, and { pinned } under the seq of the entry to come.
local function end_lots(s, pot, is_ending)
  local cover, ended, pinned = covered(s, pot), 0, 0
  for _, lot in ipairs(s.lots) do
    if letter(lot.key) == pot and lot.n > 0 and is_ending(lot.key) then
      pinned = pinned + cover[lot.key]
      ended = ended + lot.n - cover[lot.key]
      lot.n = 0
    end
  end
  s[AVAILABLE[pot]] = s[AVAILABLE[pot]] - ended
  s.net = s.net - ended
  if pinned > 0 then
    local key = string.format('%s:%012.0f', PIN[pot], s.seq + 1)
    add_lot(s, key, pinned)
    s.pins[#s.pins + 1] = { key = key, n = s[HELD[pot]] }
  end
  return ended, pinned
end

-- The outbox entry of a lot's end; its row has what the flusher needs, out of the row of the operation under way.
local function emit_end(k, s, id, pot, key, ended, pinned, row)
  s.seq = s.seq + 1
  local merchant = string.match(row, '^R1\31([^\31]*)\31') or string.match(row, '"merchant_id":"([^"\\]*)"') or ''
  emit(k.m, k.o, 'x', 'exp_' .. id, k.wallet, s.seq, -ended, balance_of(s), pot == 'p' and ended or 0, pot == 'f' and ended or 0, 0, '',
    s.debt, '{"merchant_id":"' .. merchant .. '","lot_key":"' .. key .. '"}', s.pa + s.ph, pinned)
end

-- Ends what is pinned and no longer used: pins up to a seq sum to no more than the holds which were open then and still are.
local function release(k, s, id, row)
  local backing = {}
  for _, pin in ipairs(s.pins) do backing[pin.key] = pin.n end
  for _, pot in ipairs({ 'p', 'f' }) do
    local sum = 0
    for _, lot in ipairs(s.lots) do
      if letter(lot.key) == PIN[pot] and lot.n > 0 then
        local excess = math.max(0, math.min(lot.n, sum + lot.n - (backing[lot.key] or 0)))
        lot.n = lot.n - excess
        sum = sum + lot.n
        if lot.n == 0 then backing[lot.key] = 0 end
        if excess > 0 then
          s[AVAILABLE[pot]] = s[AVAILABLE[pot]] - excess
          s.net = s.net - excess
          emit_end(k, s, id, pot, lot.key, excess, -excess, row)
        end
      end
    end
  end
  local left = {}
  for _, lot in ipairs(s.lots) do
    if POT[letter(lot.key)] and lot.n > 0 then left[lot.key] = true end
  end
  for _, pin in ipairs(s.pins) do
    if not left[pin.key] then pin.n = 0 end
  end
end

-- Is there something to end? xs as stored (false: nothing expires), at_ms as given. A lot has expired from its second on.
local function is_due(xs, at_ms)
  if not xs then return false end
  return xs == '0' or (at_ms ~= '' and tonumber(at_ms) >= tonumber(xs) * 1000)
end

-- Ends every expired lot of a wallet, each by an entry of its own, and pins that nobody uses; how many lots.
local function sweep(k, at_ms, row)
  local s, count = load(k), 0
  local at = tonumber(at_ms) or 0
  release(k, s, 'pin_' .. k.wallet, row)
  local due = {}
  for _, lot in ipairs(s.lots) do
    if not POT[letter(lot.key)] and lot.n > 0 and expiry(lot.key) * 1000 <= at then due[#due + 1] = lot.key end
  end
  for _, key in ipairs(due) do
    local ended, pinned = end_lots(s, letter(key), function(other) return other == key end)
    emit_end(k, s, string.match(key, '[^:]*$'), letter(key), key, ended, pinned, row)
    count = count + 1
  end
  save(k, s)
  return count
end

-- What a hold with pins open since its reserve burns of them, oldest first; the new lots and what is left to take.
local function burn_pins(lots, pot, take, opened)
  local all = parse(lots)
  for _, lot in ipairs(all) do
    if take > 0 and letter(lot.key) == PIN[pot] and pin_seq(lot.key) > opened then
      local used = math.min(lot.n, take)
      lot.n, take = lot.n - used, take - used
    end
  end
  return join(all), take
end

-- A hold opened at a seq has grown by (plan, funds), or ended (negative): so have the sums behind the pins that it may burn.
local function back_pins(pins, opened, plan, funds)
  for _, pin in ipairs(pins) do
    if pin_seq(pin.key) > opened then pin.n = math.max(0, pin.n + (letter(pin.key) == 'q' and plan or funds)) end
  end
end

-- A lot was added: the earliest expiry may be its own.
local function note_expiry(k, lot_key, xs)
  local at = expiry(lot_key)
  if at < NEVER and (not xs or at < tonumber(xs)) then redis.call('HSET', k.w, 'xs', str(at)) end
end

local ops = {}

-- Scopes of a reserve, 11 arguments each: key rpm burst tpm concurrent request_cycle request_max spend_cycle spend_max tokens at_ms
--   ('' = no such limit). All scopes are checked before any is counted.
local SCOPE = 11

-- What a bucket of `capacity` units holds now, in 60,000ths of a unit: it is full at first and gains per_minute units a minute.
local function level(stored, at, capacity, per_minute)
  if not stored then return capacity * 60000 end
  return math.min(capacity * 60000, num(stored) + math.max(0, now_ms - num(at)) * per_minute)
end

-- The refusal of one scope, or nil and the fields to write when all are fine.
--   refusal: { 'E429', scope index, kind (n concurrent, r rate, c count, t tokens, s spend), limit, remaining, wait_ms ('' unknown), now_ms }
local function check_scope(m, j, index, want)
  local key, rpm, tpm, most = ARGV[j], tonumber(ARGV[j + 1]), tonumber(ARGV[j + 3]), tonumber(ARGV[j + 4])
  local rcy, rmax, scy, smax, tokens = ARGV[j + 5], tonumber(ARGV[j + 6]), ARGV[j + 7], tonumber(ARGV[j + 8]), num(ARGV[j + 9])
  local f = redis.call('HMGET', key, 'ep', 'open', 'so', 'rt', 'ra', 'tt', 'ta', 'rcy', 'rc', 'scy', 'sp')
  local same = f[1] == epochs[m]
  local open, so = same and num(f[2]) or 0, same and num(f[3]) or 0
  local rc, sp = f[8] == rcy and num(f[9]) or 0, f[10] == scy and num(f[11]) or 0
  local function no(kind, limit, remaining, wait)
    return { 'E429', tostring(index), kind, str(limit), str(math.max(0, remaining)), wait and str(math.ceil(wait)) or '', str(now_ms) }
  end
  if most and open + 1 > most then return no('n', most, 0, 1000) end
  local fields = { 'ep', epochs[m], 'open', str(open + 1), 'so', str(so + want), 'lu', ARGV[j + 10], 'rcy', rcy, 'rc', str(rc + 1) }
  if rpm then
    local now_level = level(f[4], f[5], tonumber(ARGV[j + 2]) or rpm, rpm)
    if now_level < 60000 then return no('r', rpm, 0, (60000 - now_level) / rpm) end
    fields[#fields + 1], fields[#fields + 2], fields[#fields + 3], fields[#fields + 4] = 'rt', str(now_level - 60000), 'ra', str(now_ms)
  end
  if rmax and rc + 1 > rmax then return no('c', rmax, rmax - rc) end
  if tpm then
    local now_level = level(f[6], f[7], tpm, tpm)
    if now_level < tokens * 60000 then
      return no('t', tpm, math.floor(now_level / 60000), tokens <= tpm and (tokens * 60000 - now_level) / tpm or nil)
    end
    fields[#fields + 1], fields[#fields + 2], fields[#fields + 3], fields[#fields + 4] =
      'tt', str(now_level - tokens * 60000), 'ta', str(now_ms)
  end
  if smax and sp + so + want > smax then return no('s', smax, smax - sp - so) end
  if f[10] ~= scy then
    fields[#fields + 1], fields[#fields + 2], fields[#fields + 3], fields[#fields + 4] = 'scy', scy, 'sp', '0'
  end
  return nil, fields
end

local function scopes_key(k, id) return string.match(k.m, '^(.*):m$') .. ':q:' .. id end

-- V reserve: id amount fingerprint lease_ms overdraft linked tier_field row at_ms n_scopes, then each scope's arguments
--   { 'H', plan, funds, tier_counter } held | { '=H', ... } the same call again | E402 {spendable, held} | E404 | E409 | E410 ended
--   | E429 (see check_scope) | E503 recovering. Lots that have expired by at_ms are ended first, whatever the answer.
ops.V = { n = 10, has_scopes = true, run = function(k, i)
  local id, want, fp, lease = ARGV[i], amount(ARGV[i + 1]), ARGV[i + 2], tonumber(ARGV[i + 3])
  local od, linked, tier, row, n_scopes = amount(ARGV[i + 4]), ARGV[i + 5] == '1', ARGV[i + 6], ARGV[i + 7], tonumber(ARGV[i + 9])
  local after = i + 10 + n_scopes * SCOPE
  if not ready(k.m) then return { 'E503' }, after end
  if want == nil or od == nil then return { 'E400' }, after end
  local held = redis.call('GET', k.h)
  if held then
    local plan, funds, fp0 = string.match(held, '^H|(%d+)|(%d+)|%d+|%d|([^|]*)|')
    if not plan then return { 'E410' }, after end
    if string.gsub(fp0, ';%d+$', '') ~= fp then return { 'E409' }, after end
    return { '=H', plan, funds, tier ~= '' and redis.call('HGET', k.w, tier) or '0' }, after
  end
  local w = redis.call('HMGET', k.w, 'seq', 'pa', 'fa', 'ph', 'fh', tier ~= '' and tier or 'seq', 'xs')
  if not w[1] then return { 'E404' }, after end
  if is_due(w[7], ARGV[i + 8]) then
    sweep(k, ARGV[i + 8], row)
    w = redis.call('HMGET', k.w, 'seq', 'pa', 'fa', 'ph', 'fh', tier ~= '' and tier or 'seq')
  end
  local pa, fa, ph, fh = num(w[2]), num(w[3]), num(w[4]), num(w[5])
  local plan = linked and math.max(0, math.min(pa, want)) or 0
  local funds = want - plan
  if funds > 0 and (fa + od < funds or fh + funds > MAX) then
    return { 'E402', str((linked and math.max(pa, 0) or 0) + math.min(fa + od, MAX - fh)), str(ph + fh) }, after
  end
  if n_scopes > 0 then
    local writes, parts = {}, {}
    for n = 1, n_scopes do
      local j = i + 10 + (n - 1) * SCOPE
      local refusal, fields = check_scope(k.m, j, n - 1, want)
      if refusal then return refusal, after end
      writes[n] = fields
      parts[n] = table.concat({ ARGV[j], str(want), ARGV[j + 3] ~= '' and ARGV[j + 9] or '', ARGV[j + 7], ARGV[j + 8] }, ';')
    end
    for n = 1, n_scopes do
      local key = ARGV[i + 10 + (n - 1) * SCOPE]
      redis.call('HSET', key, unpack(writes[n]))
      redis.call('HINCRBY', key, 'tr', 1)
    end
    redis.call('SET', scopes_key(k, id), table.concat(parts, '|'))
  end
  if plan > 0 then redis.call('HSET', k.w, 'pa', str(pa - plan), 'ph', str(ph + plan)) end
  if funds > 0 then redis.call('HSET', k.w, 'fa', str(fa - funds), 'fh', str(fh + funds)) end
  local marks = (linked and 1 or 0) + (n_scopes > 0 and 2 or 0)
  redis.call('SET', k.h, table.concat({ 'H', str(plan), str(funds), str(od), str(marks), fp .. ';' .. w[1], k.wallet, row }, '|'))
  redis.call('ZADD', k.x, str(now_ms + lease), id)
  return { 'H', str(plan), str(funds), tier ~= '' and (w[6] or '0') or '0' }, after
end }

-- W reserve once: claim keep_ms, then V's arguments. The claim (a digest of the caller's idempotency key) names the call that has it.
--   As V | { 'E411', first id, H running or S ended, its charge ('' not known any more) } another call has this key; nothing was changed.
--   A first call that ended with nothing delivered (settled with the fingerprint 'n') gives its key back. One that V refuses claims none.
ops.W = { n = ops.V.n + 2, has_scopes = true, run = function(k, i)
  local id = ARGV[i + 2]
  local claim = string.match(k.m, '^(.*):m$') .. ':i:' .. ARGV[i]
  local first = redis.call('GET', claim)
  if first and first ~= id then
    local record = redis.call('GET', string.sub(k.h, 1, #k.h - #id) .. first)
    if record ~= 'S|0|n' then
      local charge = record and string.match(record, '^S|(%d+)|')
      local state = record and string.sub(record, 1, 1) == 'H' and 'H' or 'S'
      return { 'E411', first, state, charge or '' }, i + 12 + tonumber(ARGV[i + 11]) * SCOPE
    end
  end
  local reply, after = ops.V.run(k, i + 2)
  if reply[1] == 'H' then redis.call('SET', claim, id, 'PX', ARGV[i + 1]) end
  return reply, after
end }

local function is_linked(marks) return marks == '1' or marks == '3' end
-- The wallet's seq when a hold was opened, out of its record's fingerprint.
local function opened_at(stamp) return tonumber(string.match(stamp or '', ';(%d+)$')) or 0 end
local function has_scopes(marks) return marks == '2' or marks == '3' end

-- One pass over a hold's scopes: f(key, ceiling, tokens ('' not limited), cycle, spend_max ('' not limited)).
local function each_scope(text, f)
  for part in string.gmatch(text, '[^|]+') do
    f(string.match(part, '^(.-);(%d+);(%d*);([^;]*);(%d*)$'))
  end
end

-- A hold with scopes has ended: its slot and its ceiling are free again, its charge is spent, unused tokens go back.
local function close_scopes(k, id, charge, tokens)
  local q = scopes_key(k, id)
  each_scope(redis.call('GET', q) or '', function(key, ceiling, reserved, cycle)
    local f = redis.call('HMGET', key, 'ep', 'scy')
    if not f[1] then return end  -- deleted meanwhile
    if f[1] == epochs[k.m] then
      redis.call('HINCRBY', key, 'open', -1)
      redis.call('HINCRBY', key, 'so', str(0 - num(ceiling)))
    end
    if f[2] == cycle then redis.call('HINCRBY', key, 'sp', str(charge)) end
    redis.call('HINCRBY', key, 'ts', str(charge))
    if reserved ~= '' and tokens then redis.call('HINCRBY', key, 'tt', str((num(reserved) - tokens) * 60000)) end
  end)
  redis.call('DEL', q)
end

-- Raises the ceiling of a hold's scopes by `more`, or answers what is left of the narrowest spend limit and changes nothing.
local function extend_scopes(k, id, more)
  local q = scopes_key(k, id)
  local left, keys, parts = nil, {}, {}
  each_scope(redis.call('GET', q) or '', function(key, ceiling, reserved, cycle, smax)
    if smax ~= '' then
      local f = redis.call('HMGET', key, 'scy', 'sp', 'so')
      local free = num(smax) - (f[1] == cycle and num(f[2]) or 0) - num(f[3])
      if free < more then left = math.max(0, math.min(left or free, free)) end
    end
    keys[#keys + 1] = key
    parts[#parts + 1] = table.concat({ key, str(num(ceiling) + more), reserved, cycle, smax }, ';')
  end)
  if left then return left end
  for _, key in ipairs(keys) do redis.call('HINCRBY', key, 'so', str(more)) end
  if #parts > 0 then redis.call('SET', q, table.concat(parts, '|')) end
end

-- What a report's record says of its first debit; the row from the outbox, as long as it is there.
local function first_report(k, charge, rest)
  local id, entry, position, flags, at = string.match(rest, '^|([^|]*)|([^|]*)|(%d+)|([^|]*)|(%d+)$')
  local waiting = redis.call('XRANGE', k.o, entry, entry)[1]
  return { '=S', charge, id, position, flags, at, waiting and waiting[2][4] or '' }
end

-- S settle: id charge units tier_field position_lo position_hi fingerprint row keep_ms mode overdraft linked tokens ('' unknown) at_ms
--   mode: held (only an open hold) | late (a hold, else a direct debit, flagged) | due (only a hold whose lease has ended)
--   { 'S', balance, position, flags, wseq, at_ms } | { '=S', charge } ended before | { 'RETRY', tier_counter } priced for another
--   position | E404 no hold | E425 lease not ended | E503
--   flags: l = without a hold, o = above the hold, b = balance below -od afterwards, d = below zero within -od
ops.S = { n = 14, run = function(k, i)
  local id, charge, units, tier = ARGV[i], amount(ARGV[i + 1]), amount(ARGV[i + 2]), ARGV[i + 3]
  local lo, hi, fp, row = tonumber(ARGV[i + 4]), tonumber(ARGV[i + 5]), ARGV[i + 6], ARGV[i + 7]
  local keep, mode, after = ARGV[i + 8], ARGV[i + 9], i + 14
  if not ready(k.m) then return { 'E503' }, after end
  if charge == nil or units == nil then return { 'E400' }, after end
  local record = redis.call('GET', k.h)
  local hp, hf, od, linked, scoped, flags, opened = 0, 0, num(ARGV[i + 10]), ARGV[i + 11] == '1', false, '', nil
  if record and string.sub(record, 1, 1) == 'S' then
    return { '=S', string.match(record, '^S|(%d+)') }, after
  elseif record then
    local p, f, d, l, stamp = string.match(record, '^H|(%d+)|(%d+)|(%d+)|(%d)|([^|]*)|')
    hp, hf, od, linked, scoped, opened = num(p), num(f), num(d), is_linked(l), has_scopes(l), opened_at(stamp)
    if mode == 'due' and num(redis.call('ZSCORE', k.x, id)) > now_ms then return { 'E425' }, after end
  elseif mode == 'late' then
    flags = 'l'
  else
    return { 'E404' }, after
  end
  local w = redis.call('HMGET', k.w, 'seq', 'pa', 'fa', 'ph', 'fh', 'debt', 'lots', tier ~= '' and tier or 'seq', 'pin', 'xs', 'settled')
  if not w[1] then return { 'E404' }, after end
  local position = tier ~= '' and num(w[8] or '0') or 0
  if tier ~= '' and (position < lo or position > hi) then return { 'RETRY', str(position) }, after end
  if is_due(w[10], ARGV[i + 13]) then
    sweep(k, ARGV[i + 13], row)
    w = redis.call('HMGET', k.w, 'seq', 'pa', 'fa', 'ph', 'fh', 'debt', 'lots', 'seq', 'pin', 'xs', 'settled')
  end
  local pa, fa, ph, fh, debt = num(w[2]) + hp, num(w[3]) + hf, num(w[4]) - hp, num(w[5]) - hf, num(w[6])
  local held = hp + hf
  local plan
  if charge <= held then plan = math.min(charge, hp) else plan = linked and math.max(0, math.min(charge, pa)) or 0 end
  local funds = charge - plan
  pa, fa = pa - plan, fa - funds
  if math.abs(fa) > MAX then return { 'E400' }, after end
  local lots, short_plan, short_funds = w[7] or '', plan, funds
  local has_pins = w[9] and opened
  if has_pins then
    lots, short_plan = burn_pins(lots, 'p', short_plan, opened)
    lots, short_funds = burn_pins(lots, 'f', short_funds, opened)
  end
  lots, short_plan = burn(lots, 'p', short_plan)
  lots, short_funds = burn(lots, 'f', short_funds)
  debt = debt + short_plan + short_funds
  if record and charge > held then flags = flags .. 'o' end
  if charge > 0 and fa < 0 then flags = flags .. (fa < -od and 'b' or 'd') end
  local seq = num(w[1]) + 1
  -- One write with what has changed. Sums that a double no longer holds exactly are added by HINCRBY.
  local fields = { 'seq', str(seq), 'pa', str(pa), 'fa', str(fa), 'lots', lots }
  local function write(name, value) fields[#fields + 1], fields[#fields + 2] = name, value end
  if record then write('ph', str(ph)); write('fh', str(fh)) end
  if debt ~= num(w[6]) then write('debt', str(debt)) end
  if charge > 0 then
    local settled = num(w[11]) + charge
    if settled < MAX then write('settled', str(settled)) else redis.call('HINCRBY', k.w, 'settled', ARGV[i + 1]) end
  end
  if tier ~= '' and units > 0 then
    if position + units < MAX then write(tier, str(position + units)) else redis.call('HINCRBY', k.w, tier, ARGV[i + 2]) end
  end
  redis.call('HSET', k.w, unpack(fields))
  if record then redis.call('ZREM', k.x, id) end
  if scoped then pcall(close_scopes, k, id, charge, tonumber(ARGV[i + 12])) end  -- a counter never stops money half-way
  local balance = pa + fa + ph + fh
  emit(k.m, k.o, 's', id, k.wallet, seq, -charge, balance, plan, funds, position, flags, debt, row, pa + ph, 0,
    has_pins and opened)
  redis.call('SET', k.h, 'S|' .. str(charge) .. '|' .. fp, 'PX', keep)
  if has_pins then
    local s = load(k)
    back_pins(s.pins, opened, -hp, -hf)
    release(k, s, id, row)
    save(k, s)
  end
  return { 'S', str(balance), str(position), flags, str(seq), str(now_ms) }, after
end }

-- G reports of one wallet, each debited once, without a hold and without a look at the balance: count tier_field overdraft linked
--   at_ms keep_ms, then of each: id charge units position_lo position_hi fingerprint row. Each is answered for itself, as if it came
--   alone after the one before it; what they share is read and written once.
--   { now_ms, answer, ... }; an answer: 'position|flags' debited now | { 'RETRY', tier_counter } priced for another position
--   | { '=S', charge, id, position, flags, at_ms, row } the first debit of this id, its row '' once it is in Postgres
--   | E400 | E404 no wallet | E409 same id, other content | E503     flags: as of S
local HEAD, EACH = 6, 7
ops.G = {
  size = function(i) return HEAD + EACH * tonumber(ARGV[i]) end,
  keys = function(i) return 4 + tonumber(ARGV[i]) end,
  run = function(k, i)
    local count, tier, od, linked, at, keep = tonumber(ARGV[i]), ARGV[i + 1], num(ARGV[i + 2]), ARGV[i + 3] == '1', ARGV[i + 4], ARGV[i + 5]
    local after, answers, keys = i + HEAD + EACH * count, { str(now_ms) }, {}
    for n = 1, count do keys[n] = KEYS[k.records + n] end
    if not ready(k.m) then
      for n = 1, count do answers[n + 1] = { 'E503' } end
      return answers, after
    end
    local records = redis.call('MGET', unpack(keys))
    local tiered = tier ~= ''
    local w = redis.call('HMGET', k.w, 'seq', 'pa', 'fa', 'ph', 'fh', 'debt', 'lots', tiered and tier or 'seq', 'pin', 'xs', 'settled')
    local position = tiered and num(w[8] or '0') or 0
    local seq, pa, fa, ph, fh, debt, lots, settled
    local function read()
      seq, pa, fa, ph, fh, debt, settled = num(w[1]), num(w[2]), num(w[3]), num(w[4]), num(w[5]), num(w[6]), num(w[11])
      lots = parse(w[7])
    end
    local done, twins, by_increment, counted, moved = {}, {}, {}, false, false
    for n = 1, count do
      local j = i + HEAD + EACH * (n - 1)
      local charge, units, fp = amount(ARGV[j + 1]), amount(ARGV[j + 2]), ARGV[j + 5]
      local record, twin, answer = records[n], twins[keys[n]], nil
      if charge == nil or units == nil then
        answer = { 'E400' }
      elseif twin then
        answer = twin.fp == fp and { '=S', twin.charge, twin.id, twin.position, twin.flags, str(now_ms), twin.row } or { 'E409' }
      elseif record then
        local z, fp0, rest = string.match(record, '^S|(%d+)|([^|]*)(.*)$')
        answer = fp0 == fp and rest ~= '' and first_report(k, z, rest) or { 'E409' }
      elseif not w[1] then
        answer = { 'E404' }
      elseif tiered and (position < tonumber(ARGV[j + 3]) or position > tonumber(ARGV[j + 4])) then
        answer = { 'RETRY', str(position) }
      elseif position + units > COUNTER_MAX then
        answer = { 'E400' }
      else
        if not seq then  -- the first that is debited
          if is_due(w[10], at) then
            sweep(k, at, ARGV[j + 6])
            w = redis.call('HMGET', k.w, 'seq', 'pa', 'fa', 'ph', 'fh', 'debt', 'lots', 'seq', 'pin', 'xs', 'settled')
          end
          read()
        end
        local plan = linked and math.max(0, math.min(charge, pa)) or 0
        local funds = charge - plan
        if math.abs(fa - funds) > MAX then
          answer = { 'E400' }
        else
          pa, fa = pa - plan, fa - funds
          local short_plan, short_funds = plan, funds
          for _, lot in ipairs(lots) do
            local pot = letter(lot.key)
            if pot == 'p' then
              local used = math.min(lot.n, short_plan)
              lot.n, short_plan = lot.n - used, short_plan - used
            elseif pot == 'f' then
              local used = math.min(lot.n, short_funds)
              lot.n, short_funds = lot.n - used, short_funds - used
            end
          end
          debt = debt + short_plan + short_funds
          -- A sum that a double does not hold exactly is added by HINCRBY.
          if settled + charge < MAX then settled, counted = settled + charge, true else by_increment[#by_increment + 1] = ARGV[j + 1] end
          seq = seq + 1
          local flags = charge > 0 and fa < 0 and (fa < -od and 'b' or 'd') or ''
          twin = { n = n, id = ARGV[j], charge = str(charge), fp = fp, position = str(position), flags = flags, row = ARGV[j + 6] }
          twin.facts = string.format('s|%s|%s|%d|%d|%d|%d|%d|%s|%s|%d|%s|%d|0|', twin.id, k.wallet, seq, -charge, pa + fa + ph + fh,
            plan, funds, twin.position, flags, debt, answers[1], pa + ph)
          twins[keys[n]], done[#done + 1] = twin, twin
          if tiered and units > 0 then position, moved = position + units, true end
          answer = twin.position .. '|' .. flags
        end
      end
      answers[n + 1] = answer
    end
    if #done == 0 then return answers, after end
    local pseq = tonumber(redis.call('HINCRBY', k.m, 'pseq', #done)) - #done
    for n, one in ipairs(done) do
      one.entry = epochs[k.m] .. '-' .. str(pseq + n)
      redis.call('XADD', k.o, one.entry, 's', one.facts, 'r', one.row)
    end
    local fields = { 'seq', str(seq), 'pa', str(pa), 'fa', str(fa), 'lots', join(lots) }
    if debt ~= num(w[6]) then fields[#fields + 1], fields[#fields + 2] = 'debt', str(debt) end
    if counted then fields[#fields + 1], fields[#fields + 2] = 'settled', str(settled) end
    if moved then fields[#fields + 1], fields[#fields + 2] = tier, str(position) end
    redis.call('HSET', k.w, unpack(fields))
    for _, charge in ipairs(by_increment) do redis.call('HINCRBY', k.w, 'settled', charge) end
    for _, one in ipairs(done) do
      redis.call('SET', keys[one.n], string.format('S|%s|%s|%s|%s|%s|%s|%s', one.charge, one.fp, one.id, one.entry, one.position,
        one.flags, answers[1]), 'PX', keep)
    end
    return answers, after
  end,
}

-- B settle billed once: claim keep_ms free_row, then S's arguments. The claim (a digest of what can be seen many times, such as a
--   background response) names the call that was charged for it.
--   As S | { 'F', balance, position, flags, wseq } settled without a charge and with free_row: another call was charged.
ops.B = { n = ops.S.n + 3, run = function(k, i)
  local id, j = ARGV[i + 3], i + 3
  local claim = string.match(k.m, '^(.*):m$') .. ':b:' .. ARGV[i]
  local owner = redis.call('GET', claim)
  local is_free = owner and owner ~= id
  if is_free then
    ARGV[j + 1], ARGV[j + 2], ARGV[j + 4], ARGV[j + 5], ARGV[j + 7] = '0', '0', '0', '9007199254740991', ARGV[i + 2]
  end
  local reply, after = ops.S.run(k, j)
  if is_free and reply[1] == 'S' then reply[1] = 'F' end
  if not owner and reply[1] == 'S' then redis.call('SET', claim, id, 'PX', ARGV[i + 1]) end
  return reply, after
end }

-- L lease: id lease_ms row          { 'L' } lease moved on and checkpoint row kept | E404 no open hold
ops.L = { n = 3, run = function(k, i)
  local id, after = ARGV[i], i + 3
  local record = redis.call('GET', k.h)
  local head = record and string.match(record, '^(H|%d+|%d+|%d+|%d|[^|]*|[^|]*|)')
  if not head then return { 'E404' }, after end
  redis.call('SET', k.h, head .. ARGV[i + 2])
  redis.call('ZADD', k.x, 'XX', str(now_ms + tonumber(ARGV[i + 1])), id)
  return { 'L' }, after
end }

-- E extend: id target at_ms         { 'E', plan, funds } held is now `target` | { '=E', plan, funds } it was that much already
--   | E400 | E402 {spendable, held} | E404 no open hold | E503. By the reserve's rules (its overdraft line, its link to the plan), all
--   or nothing. "Raise to", not "add": a repeat is harmless.
ops.E = { n = 3, run = function(k, i)
  local want, after = amount(ARGV[i + 1]), i + 3
  if not ready(k.m) then return { 'E503' }, after end
  if want == nil then return { 'E400' }, after end
  local record = redis.call('GET', k.h)
  local hp, hf, od, linked, rest, stamp = string.match(record or '', '^H|(%d+)|(%d+)|(%d+)|(%d)(|([^|]*)|.*)$')
  if not hp then return { 'E404' }, after end
  local plan0, funds0 = num(hp), num(hf)
  local more = want - plan0 - funds0
  if more <= 0 then return { '=E', hp, hf }, after end
  local w = redis.call('HMGET', k.w, 'pa', 'fa', 'ph', 'fh', 'xs')
  if not w[1] then return { 'E404' }, after end
  if is_due(w[5], ARGV[i + 2]) then
    sweep(k, ARGV[i + 2], rest)
    w = redis.call('HMGET', k.w, 'pa', 'fa', 'ph', 'fh')
  end
  local pa, fa, ph, fh = num(w[1]), num(w[2]), num(w[3]), num(w[4])
  local plan = is_linked(linked) and math.max(0, math.min(pa, more)) or 0
  local funds = more - plan
  if funds > 0 and (fa + num(od) < funds or fh + funds > MAX) then
    return { 'E402', str((is_linked(linked) and math.max(pa, 0) or 0) + math.min(fa + num(od), MAX - fh)), str(ph + fh) }, after
  end
  if has_scopes(linked) then
    local left = extend_scopes(k, ARGV[i], more)
    if left then return { 'E402', str(left), str(ph + fh) }, after end
  end
  redis.call('HSET', k.w, 'pa', str(pa - plan), 'fa', str(fa - funds), 'ph', str(ph + plan), 'fh', str(fh + funds))
  redis.call('SET', k.h, table.concat({ 'H', str(plan0 + plan), str(funds0 + funds), od, linked }, '|') .. rest)
  local pins = parse(redis.call('HGET', k.w, 'pin') or '')
  if #pins > 0 then
    back_pins(pins, opened_at(stamp), plan, funds)
    redis.call('HSET', k.w, 'pin', join(pins))
  end
  return { 'E', str(plan0 + plan), str(funds0 + funds) }, after
end }

-- C credit: id amount lot_key row keep_ms     { 'C', balance, wseq } | { '=C' } was credited before | E400 | E404 | E503
--   A funds credit pays the debt first; what remains becomes a lot. A plan credit pays no debt: what is owed is owed in funds, and
--   stays so through any change of plan.
ops.C = { n = 5, run = function(k, i)
  local id, value, lot_key, row, keep, after = ARGV[i], amount(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], i + 5
  if not ready(k.m) then return { 'E503' }, after end
  if value == nil or value == 0 then return { 'E400' }, after end
  if redis.call('EXISTS', k.h) == 1 then return { '=C' }, after end
  local w = redis.call('HMGET', k.w, 'seq', 'pa', 'fa', 'ph', 'fh', 'debt', 'lots', 'xs')
  if not w[1] then return { 'E404' }, after end
  local pa, fa, ph, fh, debt = num(w[2]), num(w[3]), num(w[4]), num(w[5]), num(w[6])
  local is_plan = string.sub(lot_key, 1, 1) == 'p'
  -- A pot by itself too: below a deep debt the sum alone would let it grow beyond what a double holds.
  if pa + fa + ph + fh + value > MAX or (is_plan and pa + ph or fa + fh) + value > MAX then return { 'E400' }, after end
  local plan, left = 0, value
  if is_plan then
    plan = value
    pa = pa + value
  else
    fa = fa + value
    local paid = math.min(debt, value)
    debt, left = debt - paid, value - paid
  end
  local lots = w[7] or ''
  if left > 0 then
    lots = insert_lot(lots, lot_key, left)
    note_expiry(k, lot_key, w[8])
  end
  local seq = num(w[1]) + 1
  redis.call('HSET', k.w, 'seq', str(seq), 'pa', str(pa), 'fa', str(fa), 'debt', str(debt), 'lots', lots)
  redis.call('HINCRBY', k.w, 'credited', ARGV[i + 1])
  redis.call('SET', k.h, 'C|' .. str(value), 'PX', keep)
  local balance = pa + fa + ph + fh
  emit(k.m, k.o, 'c', id, k.wallet, seq, value, balance, plan, value - plan, 0, '', debt, row, pa + ph)
  return { 'C', str(balance), str(seq) }, after
end }

-- U undo: C's arguments, then tier_field units     as C. A debit that should not have been: its money comes back as a lot (of nothing,
--   where nothing was charged), and its units leave the tier counter.
ops.U = { n = ops.C.n + 2, run = function(k, i)
  local after, tier, units = i + 7, ARGV[i + 5], amount(ARGV[i + 6])
  if units == nil then return { 'E400' }, after end
  local reply
  if ARGV[i + 1] ~= '0' then
    reply = ops.C.run(k, i)
  elseif not ready(k.m) then
    reply = { 'E503' }
  elseif redis.call('EXISTS', k.h) == 1 then
    reply = { '=C' }
  else
    local s = load(k)
    if not s then return { 'E404' }, after end
    s.seq = s.seq + 1
    save(k, s)
    redis.call('SET', k.h, 'C|0', 'PX', ARGV[i + 4])
    emit(k.m, k.o, 'c', ARGV[i], k.wallet, s.seq, 0, balance_of(s), 0, 0, 0, '', s.debt, ARGV[i + 3], s.pa + s.ph)
    reply = { 'C', str(balance_of(s)), str(s.seq) }
  end
  local counted = reply[1] == 'C' and tier ~= '' and redis.call('HGET', k.w, tier)
  if counted then redis.call('HSET', k.w, tier, str(math.max(0, num(counted) - units))) end
  return reply, after
end }

-- F free: lot_key     { 'F', nanos } what is left of a plan lot that no hold uses, or of a funds lot | E404 | E503. Changes nothing.
ops.F = { n = 1, run = function(k, i)
  local after = i + 1
  if not ready(k.m) then return { 'E503' }, after end
  local s = load(k)
  if not s then return { 'E404' }, after end
  local cover = covered(s, letter(ARGV[i]))
  for _, lot in ipairs(s.lots) do
    if lot.key == ARGV[i] then return { 'F', str(lot.n - (cover[lot.key] or 0)) }, after end
  end
  return { 'F', '0' }, after
end }

-- N renew: id ends lot_key grant months_before drop_cycles row keep_ms
--   { 'N', balance, wseq } | { '=N' } was applied before | E400 | E404 | E503
--   One event: ends what remains of the plan lots of some classes (ends: 'c' = cycle, priority 400, 'b' = bundle, priority 450), adds
--   the lot of the cycle that begins (grant may be 0), and forgets tier counters of calendar months before months_before ('' none)
--   and of the cycles in drop_cycles (comma-separated). Funds and other classes are not touched. Flags of its entry: ends.
local CLASS = { ['p:400'] = 'c', ['p:450'] = 'b' }
ops.N = { n = 8, run = function(k, i)
  local id, ends, lot_key, grant, after = ARGV[i], ARGV[i + 1], ARGV[i + 2], amount(ARGV[i + 3]), i + 8
  local months, drops, row, keep = ARGV[i + 4], ',' .. ARGV[i + 5] .. ',', ARGV[i + 6], ARGV[i + 7]
  if not ready(k.m) then return { 'E503' }, after end
  if grant == nil or (grant > 0 and not CLASS[string.sub(lot_key, 1, 5)]) then return { 'E400' }, after end
  if redis.call('EXISTS', k.h) == 1 then return { '=N' }, after end
  local s = load(k)
  if not s then return { 'E404' }, after end
  if balance_of(s) + grant > MAX or s.pa + s.ph + grant > MAX then return { 'E400' }, after end
  local ended, pinned = end_lots(s, 'p', function(key)
    local class = CLASS[string.sub(key, 1, 5)]
    return class and string.find(ends, class, 1, true) ~= nil
  end)
  if grant > 0 then add_lot(s, lot_key, grant) end
  s.pa, s.net, s.seq = s.pa + grant, s.net + grant, s.seq + 1
  save(k, s)
  for _, field in ipairs(redis.call('HKEYS', k.w)) do
    local cycle = string.match(field, '^t:.*:([^:]*)$')
    local is_month = cycle and string.match(cycle, '^%d%d%d%d%-%d%d$')
    if cycle and ((is_month and cycle < months) or string.find(drops, ',' .. cycle .. ',', 1, true)) then
      redis.call('HDEL', k.w, field)
    end
  end
  redis.call('SET', k.h, 'C|' .. str(grant), 'PX', keep)
  local balance = balance_of(s)
  emit(k.m, k.o, 'n', id, k.wallet, s.seq, grant - ended, balance, grant, 0, 0, ends, s.debt, row, s.pa + s.ph, pinned)
  return { 'N', str(balance), str(s.seq) }, after
end }

-- A adjust: id delta lot_key ('' none) row keep_ms     { 'A', balance, wseq } | { '=A' } was applied before | E400 | E404 | E503
--   Above zero: a credit with a lot, as C. Below: takes from the named lot first (of a plan lot what no hold uses), then from funds in
--   burn order; what they do not cover is debt, without a line. Flag b: it left the wallet's funds below zero.
ops.A = { n = 5, run = function(k, i)
  local id, delta, lot_key, row, keep, after = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], i + 5
  if not ready(k.m) then return { 'E503' }, after end
  if delta == nil or delta == 0 or amount(math.abs(delta)) == nil then return { 'E400' }, after end
  if delta > 0 and lot_key == '' then return { 'E400' }, after end
  if redis.call('EXISTS', k.h) == 1 then return { '=A' }, after end
  local s = load(k)
  if not s then return { 'E404' }, after end
  local plan, funds, flags = 0, 0, ''
  if delta > 0 then
    local is_plan = letter(lot_key) == 'p'
    if balance_of(s) + delta > MAX or (is_plan and s.pa + s.ph or s.fa + s.fh) + delta > MAX then return { 'E400' }, after end
    local left = delta
    if is_plan then
      plan, s.pa = delta, s.pa + delta
    else
      funds, s.fa = delta, s.fa + delta
      local paid = math.min(s.debt, delta)
      s.debt, left = s.debt - paid, delta - paid
    end
    if left > 0 then add_lot(s, lot_key, left) end
  else
    if s.fa + delta < -MAX then return { 'E400' }, after end
    local cover = covered(s, 'p')
    for _, lot in ipairs(s.lots) do
      if lot.key == lot_key and letter(lot.key) == 'p' then
        plan = math.min(lot.n - cover[lot.key], -delta)
        lot.n = lot.n - plan
      end
    end
    funds = -delta - plan
    local take = funds
    for pass = 1, 2 do
      for _, lot in ipairs(s.lots) do
        if letter(lot.key) == 'f' and (pass == 2 or lot.key == lot_key) then
          local used = math.min(lot.n, take)
          lot.n, take = lot.n - used, take - used
        end
      end
    end
    s.pa, s.fa, s.debt = s.pa - plan, s.fa - funds, s.debt + take
    if s.fa < 0 then flags = 'b' end
  end
  s.net, s.seq = s.net + delta, s.seq + 1
  save(k, s)
  redis.call('SET', k.h, 'C|' .. str(delta), 'PX', keep)
  local balance = balance_of(s)
  emit(k.m, k.o, 'a', id, k.wallet, s.seq, delta, balance, plan, funds, 0, flags, s.debt, row, s.pa + s.ph)
  return { 'A', str(balance), str(s.seq) }, after
end }

-- X expire: at_ms row                { 'X', lots ended } | E404 | E503     Ends the lots that have expired by then; each once, by itself.
ops.X = { n = 2, run = function(k, i)
  local after = i + 2
  if not ready(k.m) then return { 'E503' }, after end
  local w = redis.call('HMGET', k.w, 'seq', 'xs')
  if not w[1] then return { 'E404' }, after end
  return { 'X', str(is_due(w[2], ARGV[i]) and sweep(k, ARGV[i], ARGV[i + 1]) or 0) }, after
end }

-- O open a wallet at zero: -         { 'O' } | { '=O' } exists | E503
ops.O = { n = 0, run = function(k, i)
  if not ready(k.m) then return { 'E503' }, i end
  if redis.call('EXISTS', k.w) == 1 then return { '=O' }, i end
  redis.call('HSET', k.w, 'seq', '0', 'pa', '0', 'fa', '0', 'ph', '0', 'fh', '0', 'debt', '0', 'settled', '0', 'credited', '0', 'lots', '')
  return { 'O' }, i
end }

local replies = {}
local i, b = 2, 0
for n = 1, tonumber(ARGV[1]) do
  local w = KEYS[b + 4]
  local k = { m = KEYS[b + 1], x = KEYS[b + 2], o = KEYS[b + 3], w = w, h = KEYS[b + 5], wallet = string.match(w, ':w:(.*)$'),
    records = b + 4 }
  local op = ops[ARGV[i]]
  b = b + (op.keys and op.keys(i + 1) or 5)
  local ok, answer, after = pcall(op.run, k, i + 1)
  if not ok then
    answer = { 'E500', tostring(type(answer) == 'table' and answer.err or answer) }
    after = i + 1 + (op.size and op.size(i + 1) or op.n) + (op.has_scopes and SCOPE * tonumber(ARGV[i + op.n]) or 0)
  end
  replies[n], i = answer, after
end
return replies
