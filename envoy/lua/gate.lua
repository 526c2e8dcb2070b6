-- Refuses by its head alone what is no call of the contract: unknown path (404), other method (405), other kind of body
-- (415), unknown query parameter or text that is not UTF-8 (400). It says which message the body must be.
--
-- Given: json, call, ROUTES = {{pattern = Lua pattern, verbs = {VERB = {request = message or "", fields = …}}}},
-- FIELDS = {message = {name = {proto name, nested message or ""}}}.

local QUERY_PARTS_MAX = 64

local function percent_decoded(text)
  return (string.gsub(string.gsub(text, "+", " "), "%%(%x%x)", function(digits)
    return string.char(tonumber(digits, 16))
  end))
end

local function route_of(path)
  for _, route in ipairs(ROUTES) do
    if string.find(path, route.pattern) then
      return route
    end
  end
  return nil
end

local function allowed_verbs(route)
  local verbs = {}
  for verb in pairs(route.verbs) do
    verbs[#verbs + 1] = verb
  end
  table.sort(verbs)
  return table.concat(verbs, ", ")
end

-- Whether a dotted name such as "merchant_order.order_id" leads to a field of `message`.
local function knows(message, dotted, in_path)
  if in_path[dotted] then
    return false
  end
  for name in string.gmatch(dotted .. ".", "([^.]*)%.") do
    local field = FIELDS[message] and FIELDS[message][name]
    if not field or in_path[field[1]] then
      return false
    end
    message, in_path = field[2], {}
  end
  return true
end

-- The first query parameter that the call does not know, or nil. A call with a body takes none, and what the path says
-- cannot be said again.
local function unknown_parameter(query, verb)
  local parts = 0
  for part in string.gmatch(query, "[^&]+") do
    parts = parts + 1
    local name = percent_decoded(string.match(part, "^[^=]*"))
    if parts > QUERY_PARTS_MAX or verb.has_body or not knows(verb.request, name, verb.in_path) then
      return name
    end
  end
  return nil
end

local function is_json(content_type)
  local kind, parameters = string.match(string.lower(content_type or ""), "^%s*([^;%s]+)%s*(.*)$")
  if kind ~= "application/json" then
    return false
  end
  return parameters == "" or string.find(parameters, '^;%s*charset="?utf%-8"?%s*$') ~= nil
end

local function check(handle)
  local headers = handle:headers()
  local path, query = string.match(headers:get(":path") or "", "^([^?]*)%??(.*)$")
  if call.is_native_grpc(headers) then
    return
  end
  -- An escaped slash may not pass for a part of an id.
  local route = not string.find(string.lower(path), "%%2f") and not string.find(string.lower(path), "%%5c")
    and route_of(path)
  if not route then
    return call.refuse(handle, 404, "ROUTE_NOT_FOUND")
  end
  local verb = route.verbs[headers:get(":method")]
  if not verb then
    return call.refuse(handle, 405, "METHOD_NOT_ALLOWED", {}, {allow = allowed_verbs(route)})
  end
  if verb.has_body and not is_json(headers:get("content-type")) then
    return call.refuse(handle, 415, "UNSUPPORTED_MEDIA_TYPE")
  end
  if verb.has_body and (headers:get("content-encoding") or "identity") ~= "identity" then
    return call.refuse(handle, 415, "UNSUPPORTED_MEDIA_TYPE")
  end
  if json.invalid_utf8_at(percent_decoded(path)) or json.invalid_utf8_at(percent_decoded(query)) then
    return call.refuse(handle, 400, "INVALID_UTF8")
  end
  local unknown = unknown_parameter(query, verb)
  if unknown then
    return call.refuse(handle, 400, "UNKNOWN_FIELD", {field = unknown})
  end
  local key = headers:get("idempotency-key")
  if key and (#key > 64 or not string.find(key, "^[!-~]+$")) then
    local problem = "1 to 64 visible ASCII characters"
    return call.refuse(handle, 400, "VALIDATION_FAILED", {field = "Idempotency-Key", problem = problem})
  end
  call.note(handle, "message", verb.has_body and verb.request or "")
end

function envoy_on_request(handle)
  call.guard(handle, check)
end
