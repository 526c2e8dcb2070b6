-- What the edge's filters know of one call, kept in the stream's metadata: `note` writes, `noted` reads, `refuse` ends
-- the call with a reason that the envelope then puts into words.
local call = {}

local NAMESPACE = "couponmesh.edge"
local PROBLEM_MAX_BYTES = 200

function call.note(handle, name, value)
  handle:streamInfo():dynamicMetadata():set(NAMESPACE, name, value)
end

-- Everything noted so far; empty when the call was refused before the first filter.
function call.noted(handle)
  return handle:streamInfo():dynamicMetadata():get(NAMESPACE) or {}
end

-- Whether a path belongs to REST, whatever the content type says: a body check that a content type could switch off
-- would check nothing.
function call.is_rest(path)
  return string.find(path, "^/api/v1/") ~= nil
end

-- gRPC or gRPC-Web on a path of its own.
function call.is_native_grpc(headers)
  local content_type = headers:get("content-type") or ""
  return string.find(content_type, "^application/grpc") ~= nil and not call.is_rest(headers:get(":path") or "")
end

-- A text of bounded length that is safe to repeat to the caller: cut before the first byte that is not UTF-8.
function call.bounded(text)
  text = string.sub(text, 1, PROBLEM_MAX_BYTES)
  local bad = json.invalid_utf8_at(text)
  return bad and string.sub(text, 1, bad - 1) or text
end

function call.refuse(handle, status, reason, metadata, headers)
  call.note(handle, "reason", reason)
  for name, value in pairs(metadata or {}) do
    call.note(handle, "metadata." .. name, call.bounded(value))
  end
  local reply = {[":status"] = tostring(status)}
  for name, value in pairs(headers or {}) do
    reply[name] = value
  end
  handle:respond(reply, reason)
end

-- Runs a check so that its failure ends the call: Envoy lets a call go on whose script failed.
function call.guard(handle, check)
  local done, problem = pcall(check, handle)
  if not done then
    handle:logErr(tostring(problem))
    call.refuse(handle, 500, "INTERNAL")
  end
end

return call
