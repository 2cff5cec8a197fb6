-- Ten header fields as a browser sends them, with values that are always new, so that a server gains nothing by remembering them.
-- The names and their order stay the same, as they do with one browser.
dofile((debug.getinfo(1, "S").source:match("^@(.*)/") or ".") .. "/../report.lua")

local count = 0

function request()
  count = count + 1
  return string.format(
    "GET / HTTP/1.1\r\n" ..
    "Host: %s:%d\r\n" ..
    "Connection: keep-alive\r\n" ..
    "Cache-Control: max-age=%d\r\n" ..
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.%d.0 Safari/537.36\r\n" ..
    "Accept: text/html,application/xhtml+xml;q=0.9,image/avif,image/webp,*/*;q=0.8,text/x-%d\r\n" ..
    "Accept-Encoding: gzip, deflate, br;q=0.%d\r\n" ..
    "Accept-Language: en-GB,en;q=0.%d\r\n" ..
    "Referer: http://shop.example/articles/%d?page=2\r\n" ..
    "Cookie: session=%08x7f3a9c51b2; csrf=%08xd41d8cd98f00b204; seen=%d\r\n" ..
    "If-None-Match: \"%08x-5f1a\"\r\n" ..
    "\r\n",
    wrk.host, wrk.port, count, count, count, count, count, count, count, count, count, count)
end
