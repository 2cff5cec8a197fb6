-- Sixteen requests in one segment, as sent by a client that does not wait for responses.
dofile((debug.getinfo(1, "S").source:match("^@(.*)/") or ".") .. "/../report.lua")

function init(args)
  local one = wrk.format("GET", wrk.path)
  batch = one:rep(16)
end

function request()
  return batch
end
