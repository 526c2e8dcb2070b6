-- Reads strict JSON (RFC 8259) and quotes strings; Envoy's Lua has no JSON library of its own.
--
-- decode(text, max_depth) gives the value, or nil and {reason = …, problem = …}:
--   object   {kind = "object", names = {in order}, fields = {name = value}}
--   array    {kind = "array", items = {…}}
--   number   {kind = "number", text = "150.00"}, since a double would lose digits
--   string, true and false as Lua has them; null as json.null
local json = {}

json.null = {kind = "null"}

local ESCAPES = {
  ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t",
}
local QUOTED = {['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t"}

-- The offset of the first byte that is not part of well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates,
-- nothing above U+10FFFF), or nil.
function json.invalid_utf8_at(text)
  local at = string.find(text, "[\128-\255]")
  while at do
    local a, b, c, d = string.byte(text, at, at + 3)
    local function tail(byte, low, high)
      return byte ~= nil and byte >= (low or 0x80) and byte <= (high or 0xBF)
    end
    if a >= 0xC2 and a <= 0xDF and tail(b) then
      at = at + 2
    elseif a >= 0xE0 and a <= 0xEF and tail(b, a == 0xE0 and 0xA0, a == 0xED and 0x9F) and tail(c) then
      at = at + 3
    elseif a >= 0xF0 and a <= 0xF4 and tail(b, a == 0xF0 and 0x90, a == 0xF4 and 0x8F) and tail(c) and tail(d) then
      at = at + 4
    else
      return at
    end
    at = string.find(text, "[\128-\255]", at)
  end
  return nil
end

-- A JSON string literal of well-formed UTF-8.
function json.quote(text)
  return '"' .. string.gsub(text, '[%z\1-\31"\\\127]', function(character)
    return QUOTED[character] or string.format("\\u%04x", string.byte(character))
  end) .. '"'
end

local function fail(reason, problem, at)
  error({reason = reason, problem = problem .. " at byte " .. at}, 0)
end

local function malformed(problem, at)
  fail("MALFORMED_JSON", problem, at)
end

local function utf8_of(code)
  if code < 0x80 then
    return string.char(code)
  end
  if code < 0x800 then
    return string.char(0xC0 + math.floor(code / 0x40), 0x80 + code % 0x40)
  end
  if code < 0x10000 then
    return string.char(0xE0 + math.floor(code / 0x1000), 0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40)
  end
  return string.char(
    0xF0 + math.floor(code / 0x40000), 0x80 + math.floor(code / 0x1000) % 0x40,
    0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40
  )
end

-- The four hexadecimal digits at `at`, as a number.
local function hexadecimal(text, at)
  local digits = string.match(text, "^%x%x%x%x", at)
  if not digits then
    malformed("\\u needs four hexadecimal digits", at)
  end
  return tonumber(digits, 16)
end

-- An escape whose backslash stands at `at`: its text and where the string goes on.
local function escape(text, at)
  local letter = string.sub(text, at + 1, at + 1)
  if ESCAPES[letter] then
    return ESCAPES[letter], at + 2
  end
  if letter ~= "u" then
    malformed("unknown escape", at)
  end
  local code = hexadecimal(text, at + 2)
  if code < 0xD800 or code > 0xDFFF then
    return utf8_of(code), at + 6
  end
  local low = string.sub(text, at + 6, at + 7) == "\\u" and hexadecimal(text, at + 8) or 0
  if code > 0xDBFF or low < 0xDC00 or low > 0xDFFF then
    fail("INVALID_UTF8", "half a surrogate pair", at)
  end
  return utf8_of(0x10000 + (code - 0xD800) * 0x400 + low - 0xDC00), at + 12
end

-- A string whose opening quote stands at `at`: its text and where the rest goes on.
local function read_string(text, at)
  local parts, from = {}, at + 1
  while true do
    local stop = string.find(text, '[%z\1-\31"\\]', from)
    if not stop then
      malformed("a string does not end", at)
    end
    parts[#parts + 1] = string.sub(text, from, stop - 1)
    local byte = string.byte(text, stop)
    if byte == 34 then
      return table.concat(parts), stop + 1
    elseif byte ~= 92 then
      malformed("a control character in a string", stop)
    end
    parts[#parts + 1], from = escape(text, stop)
  end
end

local function read_number(text, at)
  local whole = string.match(text, "^%-?0", at) or string.match(text, "^%-?[1-9]%d*", at)
  if not whole then
    malformed("a value is missing or misspelt", at)
  end
  local stop = at + #whole
  local fraction = string.match(text, "^%.%d+", stop) or ""
  stop = stop + #fraction
  local exponent = string.match(text, "^[eE][+-]?%d+", stop) or ""
  stop = stop + #exponent
  if string.find(text, "^[%w.+-]", stop) then
    malformed("a number is misspelt", at)
  end
  return {kind = "number", text = whole .. fraction .. exponent}, stop
end

-- Where the next character that is not white space stands; one past the end when there is none.
local function skip(text, at)
  return string.find(text, "[^ \t\r\n]", at) or #text + 1
end

local WORDS = {{"true", true}, {"false", false}, {"null", json.null}}

local read_value

local function read_array(text, at, depth)
  local items = {}
  at = skip(text, at + 1)
  if string.sub(text, at, at) == "]" then
    return {kind = "array", items = items}, at + 1
  end
  while true do
    items[#items + 1], at = read_value(text, at, depth)
    at = skip(text, at)
    local mark = string.sub(text, at, at)
    if mark == "]" then
      return {kind = "array", items = items}, at + 1
    elseif mark ~= "," then
      malformed("an array lacks a comma or its end", at)
    end
    at = at + 1
  end
end

local function read_object(text, at, depth)
  local names, fields = {}, {}
  at = skip(text, at + 1)
  if string.sub(text, at, at) == "}" then
    return {kind = "object", names = names, fields = fields}, at + 1
  end
  while true do
    at = skip(text, at)
    if string.sub(text, at, at) ~= '"' then
      malformed("a name is missing", at)
    end
    local start, name = at, nil
    name, at = read_string(text, at)
    if fields[name] ~= nil then
      malformed("a name stands twice", start)
    end
    at = skip(text, at)
    if string.sub(text, at, at) ~= ":" then
      malformed("a colon is missing", at)
    end
    names[#names + 1] = name
    fields[name], at = read_value(text, at + 1, depth)
    at = skip(text, at)
    local mark = string.sub(text, at, at)
    if mark == "}" then
      return {kind = "object", names = names, fields = fields}, at + 1
    elseif mark ~= "," then
      malformed("an object lacks a comma or its end", at)
    end
    at = at + 1
  end
end

function read_value(text, at, depth)
  at = skip(text, at)
  local mark = string.sub(text, at, at)
  if mark == '"' then
    return read_string(text, at)
  elseif mark == "{" or mark == "[" then
    if depth == 0 then
      malformed("values are nested too deeply", at)
    end
    return (mark == "{" and read_object or read_array)(text, at, depth - 1)
  end
  for _, word in ipairs(WORDS) do
    if string.sub(text, at, at + #word[1] - 1) == word[1] then
      return word[2], at + #word[1]
    end
  end
  return read_number(text, at)
end

function json.decode(text, max_depth)
  local bad = json.invalid_utf8_at(text)
  if bad then
    return nil, {reason = "INVALID_UTF8", problem = "not UTF-8 at byte " .. bad}
  end
  local read, value, at = pcall(read_value, text, 1, max_depth)
  if not read then
    if type(value) ~= "table" then
      error(value, 0)
    end
    return nil, value
  end
  at = skip(text, at)
  if at <= #text then
    return nil, {reason = "MALFORMED_JSON", problem = "more follows after the value at byte " .. at}
  end
  return value
end

return json
