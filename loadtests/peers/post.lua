-- A client of an API that sends JSON documents: the header fields stay the same, the content is always new.
dofile((debug.getinfo(1, "S").source:match("^@(.*)/") or ".") .. "/../report.lua")

local count = 0

function request()
  count = count + 1
  local body = string.format('{"id": %08d, "name": "%s", "tags": ["a", "b"], "price": 12.50}', count, ("x"):rep(200))
  return wrk.format("POST", "/items", {
    ["Accept"] = "application/json",
    ["Authorization"] = "Bearer 6ab37f3a9c51b2d41d8cd98f00b204",
    ["Content-Type"] = "application/json",
    ["User-Agent"] = "shop/1.4",
  }, body)
end
