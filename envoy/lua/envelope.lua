-- Puts every reply but gRPC's into the envelope {"code": HTTP status, "data": {…}}; an error adds reason, message,
-- request_id, trace_id and retry_after_ms. It is the outermost filter, so it sees the other filters' own replies too.
-- It also gives every call a trace id.
--
-- Given: json, call, REASONS = {name = {code = gRPC code, en = …, zh = …, wait_ms = …}}, BY_HTTP and BY_GRPC = {status =
-- reason name} for replies that carry no reason of ours.

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
  if call.is_native_grpc(headers) then
    call.note(handle, "grpc", true)
    return
  end
  local key = headers:get("idempotency-key")
  call.note(handle, "trace_id", trace_id)
  call.note(handle, "edge_request_id", request_id)
  call.note(handle, "language", language_of(headers:get("accept-language")))
  call.note(handle, "method", headers:get(":method") or "")
  if key and #key <= 64 and string.find(key, "^[!-~]+$") then
    call.note(handle, "idempotency_key", key)
  end
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
    return "MALFORMED_JSON", {problem = call.bounded(text)}
  end
  -- The transcoder names the parameter; before the first filter, Envoy says nothing of use.
  local field, problem = string.match(text, "^([%w_.]+): (.+)$")
  return "VALIDATION_FAILED", {field = field or "request", problem = call.bounded(problem or "malformed")}
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
  return '{"code":' .. spec.code .. ',"message":' .. json.quote(filled(spec.en, metadata))
    .. ',"details":[{"@type":"' .. ERROR_INFO .. '","reason":"' .. reason
    .. '","domain":"couponmesh","metadata":{' .. table.concat(entries, ",") .. "}}]}"
end

local function error_envelope(noted, http_status, text)
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
  local members = {
    '"code":' .. http_status,
    '"data":' .. data,
    '"reason":' .. json.quote(reason),
    '"message":' .. json.quote(message or ""),
    '"request_id":' .. json.quote(noted.idempotency_key or noted.request_id or noted.edge_request_id or ""),
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
    envelope, wait_ms = error_envelope(noted, http_status, "")
  elseif http_status < 300 then
    envelope = '{"code":' .. http_status .. ',"data":' .. (text == "" and "{}" or text) .. "}"
  else
    envelope, wait_ms = error_envelope(noted, http_status, text)
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
