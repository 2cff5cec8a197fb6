-- The same ten header fields in each request, as a browser sends them, but a path that is always new, as with an API.
dofile((debug.getinfo(1, "S").source:match("^@(.*)/") or ".") .. "/../report.lua")

local count = 0
local fields

function request()
  count = count + 1
  fields = fields or string.format(
    " HTTP/1.1\r\n" ..
    "Host: %s:%d\r\n" ..
    "Connection: keep-alive\r\n" ..
    "Cache-Control: max-age=0\r\n" ..
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\n" ..
    "Accept: text/html,application/xhtml+xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n" ..
    "Accept-Encoding: gzip, deflate, br\r\n" ..
    "Accept-Language: en-GB,en;q=0.5\r\n" ..
    "Referer: http://shop.example/articles?page=2\r\n" ..
    "Cookie: session=6ab37f3a9c51b2; csrf=6ab3d41d8cd98f00b204\r\n" ..
    "If-None-Match: \"6ab3-5f1a\"\r\n" ..
    "\r\n",
    wrk.host, wrk.port)
  return "GET /items/" .. count .. fields
end
