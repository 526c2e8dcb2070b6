-- Checks the body of a REST mutation: strict JSON, an object, and only fields that the contract knows. The transcoder
-- would drop an unknown field without a word.
--
-- Given: json, call, FIELDS = {message = {name = {proto name, nested message or ""}}}.

-- The contract nests five deep at most; protobuf's own parser stops at 100.
local DEPTH_MAX = 32

local check_fields

local function check_nested(value, message, path)
  if type(value) ~= "table" then
    return nil
  end
  if value.kind == "object" then
    return check_fields(value, message, path .. ".")
  end
  if value.kind == "array" then
    for index, item in ipairs(value.items) do
      local refusal = check_nested(item, message, path .. "[" .. (index - 1) .. "]")
      if refusal then
        return refusal
      end
    end
  end
  -- Anything else has the wrong type, which the transcoder refuses.
  return nil
end

function check_fields(object, message, path)
  local given = {}
  for _, name in ipairs(object.names) do
    local field = FIELDS[message][name]
    if not field then
      return {reason = "UNKNOWN_FIELD", metadata = {field = path .. name}}
    end
    if given[field[1]] then
      return {reason = "MALFORMED_JSON", metadata = {problem = "the field " .. path .. field[1] .. " stands twice"}}
    end
    given[field[1]] = true
    local refusal = field[2] ~= "" and check_nested(object.fields[name], field[2], path .. name)
    if refusal then
      return refusal
    end
  end
  return nil
end

-- Why a body is refused, or nil, and the request_id that it names.
local function refusal_of(text, message)
  local value, problem = json.decode(text, DEPTH_MAX)
  if value == nil then
    return {reason = problem.reason, metadata = {problem = problem.problem}}
  end
  if type(value) ~= "table" or value.kind ~= "object" then
    return {reason = "MALFORMED_JSON", metadata = {problem = "the body is not a JSON object"}}
  end
  local refusal = check_fields(value, message, "")
  return refusal, value.fields.request_id or value.fields.requestId
end

local function check(handle)
  local message = call.noted(handle).message
  if not message or message == "" then
    return
  end
  local body = handle:body(true)
  local refusal, request_id = refusal_of(body:getBytes(0, body:length()), message)
  local noted = call.noted(handle).request_id
  if not noted and type(request_id) == "string" and #request_id <= 64 and string.find(request_id, "^[!-~]+$") then
    call.note(handle, "request_id", request_id)
  end
  if refusal then
    call.refuse(handle, 400, refusal.reason, refusal.metadata)
  end
end

function envoy_on_request(handle)
  call.guard(handle, check)
end
