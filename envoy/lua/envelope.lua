-- Puts every reply but gRPC's into the envelope {"code": HTTP status, "data": {…}}; an error adds reason, message,
-- request_id, trace_id and retry_after_ms. It is the outermost filter, so it sees the other filters' own replies too.
-- It also gives every call a trace id.
--
-- Given: json, call, REASONS = {name = {code = gRPC code, en = …, zh = …, wait_ms = …}}, BY_HTTP and BY_GRPC = {status =
-- reason name} for replies that carry no reason of ours, MESSAGES = {name of each message = true}.

local STATUS_DEPTH_MAX = 16
local LANGUAGES_MAX_BYTES = 256
local ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
local LOCALIZED = "type.googleapis.com/google.rpc.LocalizedMessage"
local RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
-- What the transcoder makes of a gRPC status, for streams whose status came too late for it.
local HTTP_OF_GRPC = {
  [1] = 499, [3] = 400, [4] = 504, [5] = 404, [6] = 409, [7] = 403, [8] = 429, [9] = 400, [10] = 409, [11] = 400,
  [12] = 501, [14] = 503, [16] = 401,
}
-- What only gRPC callers need to see.
local GRPC_HEADERS = {
  "grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-accept-encoding", "grpc-encoding",
}

-- "zh-CN" unless English is preferred (RFC 9110 §12.5.4); at equal weight the one named first.
local function language_of(header)
  local best, weight = "zh-CN", 0
  for item in string.gmatch(string.sub(header or "", 1, LANGUAGES_MAX_BYTES), "[^,]+") do
    local tag = string.match(string.lower(item), "^%s*(%a+)")
    local q = tonumber(string.match(item, ";%s*[qQ]=([%d.]+)") or "1") or 0
    if (tag == "en" or tag == "zh") and q > weight then
      best, weight = tag == "en" and "en" or "zh-CN", q
    end
  end
  return best
end

-- The trace id of a W3C traceparent, or nil when it has another form or is all zeros.
local function trace_id_of(traceparent)
  local trace, span = string.match(traceparent or "", "^00%-(%x+)%-(%x+)%-%x%x$")
  if not trace or #trace ~= 32 or #span ~= 16 or string.find(traceparent, "%u") then
    return nil
  end
  if not string.find(trace, "[^0]") or not string.find(span, "[^0]") then
    return nil
  end
  return trace
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local request_id = headers:get("x-request-id") or ""
  local trace_id = trace_id_of(headers:get("traceparent"))
  if not trace_id then
    trace_id = string.gsub(request_id, "-", "")
    headers:replace("traceparent", "00-" .. trace_id .. "-" .. string.sub(trace_id, 1, 16) .. "-00")
    headers:remove("tracestate")
  end
  local key = headers:get("idempotency-key")
  call.note(handle, "trace_id", trace_id)
  if key and #key <= 64 and string.find(key, "^[!-~]+$") then
    call.note(handle, "request_id", key)
  end
  if call.is_native_grpc(headers) then
    call.note(handle, "grpc", true)
    return
  end
  call.note(handle, "edge_request_id", request_id)
  call.note(handle, "language", language_of(headers:get("accept-language")))
  call.note(handle, "method", headers:get(":method") or "")
end

-- The entries of an array, or none; the members of an object, or none.
local function part(value, name)
  return type(value) == "table" and value[name] or {}
end

-- What a google.rpc.Status in JSON says: {reason, message, wait_ms, grpc_code}; nothing when the text is none.
local function read_status(text, language)
  local status = string.sub(text, 1, 1) == "{" and json.decode(text, STATUS_DEPTH_MAX)
  local members = part(status, "fields")
  local found = {grpc_code = members.details and tonumber(part(members.code, "text")) or nil}
  for _, detail in ipairs(part(members.details, "items")) do
    local fields = part(detail, "fields")
    local kind = fields["@type"]
    if kind == ERROR_INFO and fields.domain == "couponmesh" then
      found.reason = type(fields.reason) == "string" and fields.reason or nil
    elseif kind == LOCALIZED and fields.locale == language then
      found.message = fields.message
    elseif kind == RETRY_INFO then
      local seconds = type(fields.retry_delay) == "string" and string.match(fields.retry_delay, "^([%d.]+)s$")
      found.wait_ms = math.ceil((tonumber(seconds or 0) or 0) * 1000)
    end
  end
  return found
end

local SCALARS = {
  BOOL = "true or false", BYTES = "base64", DOUBLE = "a number", FLOAT = "a number", STRING = "a text",
}

-- What a field of this protobuf type takes, in plain words.
local function wanted(kind)
  local scalar = string.match(kind, "^TYPE_([%u%d]+)$")
  if scalar then
    return SCALARS[scalar] or "a whole number in range"
  end
  local name = string.match(kind, "([^/]*)$")
  if name == "google.protobuf.Timestamp" then
    return "a time such as 2035-01-01T00:00:00Z"
  elseif name == "google.protobuf.Duration" then
    return 'a duration such as "3600s"'
  end
  return MESSAGES[name] and "an object" or "one of the values that the field takes"
end

-- What the transcoder says of a body, in the words of a caller, who knows JSON and nothing of protobuf.
local function plain_problem(text)
  text = string.match(text, "^[^\n]*")
  local function of(path, problem)
    return (path == "" and "a field" or path) .. ": " .. problem
  end
  local path, value, kind = string.match(text, "^([%w_.%[%]]*): invalid value (.*) for type (%S+)$")
  if value == "Starting an object on a scalar field" then
    return of((path == "" and "" or path .. ".") .. kind, "an object stands where one value belongs")
  elseif value and string.find(value, "^Field '") then
    return of(path, "it is not " .. wanted(kind))
  elseif value then
    return of(path, value .. " is not " .. wanted(kind))
  end
  path = string.match(text, "^([%w_.%[%]]*): Proto field is not repeating")
  if path then
    return (path == "" and "" or path .. ": ") .. "a list stands where one value belongs"
  end
  local in_path, field, in_body = string.match(
    text, '^The binding value (".*") of the field ([%w_.]+) is conflicting with the value (".*") in the body'
  )
  if field then
    return field .. ": the path says " .. in_path .. ", the body " .. in_body
  end
  if string.find(text, "^Number exceeds the range") then
    return "a number is out of range"
  end
  return "a value does not fit its field"
end

-- Why Envoy itself, or a service without saying so, refused: {reason, metadata}.
local function explain(noted, http_status, grpc_code, text)
  if noted.reason then
    local metadata = {}
    for name, value in pairs(noted) do
      local key = string.match(name, "^metadata%.(.+)$")
      if key then
        metadata[key] = value
      end
    end
    return noted.reason, metadata
  end
  if grpc_code then
    return BY_GRPC[grpc_code] or "INTERNAL", {}
  end
  if BY_HTTP[http_status] then
    return BY_HTTP[http_status], {}
  elseif http_status >= 500 then
    return "INTERNAL", {}
  elseif http_status ~= 400 then
    return "VALIDATION_FAILED", {field = "request", problem = "HTTP status " .. http_status}
  end
  if noted.message and noted.message ~= "" then
    return "MALFORMED_JSON", {problem = call.bounded(plain_problem(text))}
  end
  -- The transcoder names the parameter; before the first filter, Envoy says nothing of use.
  local field, value, kind = string.match(text, "^([%w_.]+): invalid value (.*) for type (%S+)$")
  local problem = value and value .. " is not " .. wanted(kind) or "malformed"
  return "VALIDATION_FAILED", {field = field or "request", problem = call.bounded(problem)}
end

local function filled(template, metadata)
  return (string.gsub(template, "{([%w_]+)}", function(name)
    return metadata[name] or "?"
  end))
end

local function sorted_names(map)
  local names = {}
  for name in pairs(map) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

-- The google.rpc.Status that a service would have sent for this reason.
local function own_status(reason, metadata)
  local entries = {}
  for _, name in ipairs(sorted_names(metadata)) do
    entries[#entries + 1] = json.quote(name) .. ":" .. json.quote(metadata[name])
  end
  local spec = REASONS[reason]
  local english = json.quote(filled(spec.en, metadata))
  local details = {
    '{"@type":"' .. ERROR_INFO .. '","reason":"' .. reason .. '","domain":"couponmesh","metadata":{'
      .. table.concat(entries, ",") .. "}}",
    '{"@type":"' .. LOCALIZED .. '","locale":"zh-CN","message":' .. json.quote(filled(spec.zh, metadata)) .. "}",
    '{"@type":"' .. LOCALIZED .. '","locale":"en","message":' .. english .. "}",
  }
  if spec.wait_ms and spec.wait_ms > 0 then
    details[#details + 1] = '{"@type":"' .. RETRY_INFO .. '","retry_delay":"'
      .. string.format("%.3fs", spec.wait_ms / 1000) .. '"}'
  end
  return '{"code":' .. spec.code .. ',"message":' .. english .. ',"details":[' .. table.concat(details, ",") .. "]}"
end

local function error_envelope(handle, noted, http_status, text)
  local language = noted.language or "zh-CN"
  local said = read_status(text, language)
  local data, reason, message, wait_ms = text, said.reason, said.message, said.wait_ms
  if not reason then
    -- Without a reason of ours the text may tell of the inside; it stays there.
    local metadata
    reason, metadata = explain(noted, http_status, said.grpc_code, text)
    data = own_status(reason, metadata)
    message = filled(REASONS[reason][language == "en" and "en" or "zh"], metadata)
    wait_ms = REASONS[reason].wait_ms
  end
  call.note(handle, "reason", reason)
  local members = {
    '"code":' .. http_status,
    '"data":' .. data,
    '"reason":' .. json.quote(reason),
    '"message":' .. json.quote(message or ""),
    '"request_id":' .. json.quote(noted.request_id or noted.edge_request_id or ""),
    '"trace_id":' .. json.quote(noted.trace_id or ""),
  }
  if wait_ms and wait_ms > 0 then
    members[#members + 1] = '"retry_after_ms":' .. wait_ms
  end
  return "{" .. table.concat(members, ",") .. "}", wait_ms
end

-- The gRPC code with which a stream of replies broke off, or nil. The transcoder wrote the status and an array of the
-- replies before it knew how the stream would end.
local function broken_stream(handle, text)
  if string.sub(text, 1, 1) ~= "[" then
    return nil
  end
  local trailers = handle:trailers()
  local code = tonumber(trailers and trailers:get("grpc-status") or 0) or 2
  return code ~= 0 and code or nil
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local noted = call.noted(handle)
  local http_status = tonumber(headers:get(":status"))
  -- The reply to HEAD has no body; one would be read as the next reply.
  if noted.grpc or noted.method == "HEAD" or http_status < 200 then
    return
  end
  if string.find(headers:get("content-type") or "", "^application/grpc") then
    return
  end
  local body = handle:body(true)
  local text = body:getBytes(0, body:length())
  local envelope, wait_ms
  local broken = http_status < 300 and broken_stream(handle, text)
  if broken then
    -- What came before the end is not passed on: half an answer must not look like one.
    http_status = HTTP_OF_GRPC[broken] or 500
    noted.reason = BY_GRPC[broken] or "INTERNAL"
    envelope, wait_ms = error_envelope(handle, noted, http_status, "")
  elseif http_status < 300 then
    envelope = '{"code":' .. http_status .. ',"data":' .. (text == "" and "{}" or text) .. "}"
  else
    envelope, wait_ms = error_envelope(handle, noted, http_status, text)
  end
  body:setBytes(envelope)
  -- Waiting for the body ended the life of the first header object.
  headers = handle:headers()
  headers:replace(":status", tostring(http_status))
  for _, name in ipairs(GRPC_HEADERS) do
    headers:remove(name)
  end
  headers:replace("content-type", "application/json")
  headers:replace("content-length", tostring(#envelope))
  -- A reply may hold a code, which is as good as money.
  headers:replace("cache-control", "no-store")
  headers:replace("x-content-type-options", "nosniff")
  if wait_ms and wait_ms > 0 then
    headers:replace("retry-after", tostring(math.ceil(wait_ms / 1000)))
  end
end
