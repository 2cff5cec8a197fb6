"""WebSockets as Starlette and FastAPI document them: endpoints, iterators, dependencies, refusals."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, WebSocket, WebSocketDisconnect, WebSocketException
from starlette.endpoints import WebSocketEndpoint
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import WebSocketRoute

app = FastAPI()
ends: dict[str, Any] = {}  # how each WebSocket ended, by a name that its client chose


@app.get("/ends/{name}")
async def end_of(name: str) -> Any:
    return ends.get(name)


@app.websocket("/text")
async def text(websocket: WebSocket) -> None:
    """The tutorial's example, with a note of the exception at its end."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(f"Message text was: {await websocket.receive_text()}")
    except WebSocketDisconnect as error:
        ends[websocket.url.query] = [error.code, error.reason]


@app.websocket("/iterate/{kind}")
async def iterate(websocket: WebSocket, kind: str) -> None:
    """Iterators end when the client leaves."""
    await websocket.accept()
    if kind == "text":
        async for one in websocket.iter_text():
            await websocket.send_text(one.upper())
    elif kind == "bytes":
        async for data in websocket.iter_bytes():
            await websocket.send_bytes(data[::-1])
    else:
        async for value in websocket.iter_json():
            await websocket.send_json({"got": value})
    ends[websocket.url.query] = "iterated"


class Endpoint(WebSocketEndpoint):
    """A class with a method for each event."""

    encoding = "json"

    async def on_connect(self, websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="json", headers=[(b"x-endpoint", b"yes")])

    async def on_receive(self, websocket: WebSocket, data: Any) -> None:
        await websocket.send_json([data, data])

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        ends[websocket.url.query] = close_code


app.router.routes.append(WebSocketRoute("/endpoint", Endpoint))


async def permitted(websocket: WebSocket, token: Annotated[str | None, Query()] = None) -> str:
    if token is None:
        raise WebSocketException(code=1008)
    if token == "old":
        raise HTTPException(401, "this token is old", {"WWW-Authenticate": "Bearer"})
    return token


@app.websocket("/guarded/{item}")
async def guarded(websocket: WebSocket, item: int, token: Annotated[str, Depends(permitted)]) -> None:
    """Validated parameters, and a dependency that refuses."""
    await websocket.accept()
    await websocket.send_json({"item": item, "token": token, "cookie": websocket.cookies.get("c")})
    raise WebSocketException(code=4001, reason="enough")


@app.websocket("/denied")
async def denied(websocket: WebSocket) -> None:
    await websocket.send_denial_response(JSONResponse({"why": "closed on Sundays"}, 418))


@app.websocket("/late")
async def late(websocket: WebSocket) -> None:
    """Sends until the client is gone."""
    await websocket.accept()
    try:
        while True:
            await websocket.send_bytes(b"x" * 65536)
    except WebSocketDisconnect as error:
        ends[websocket.url.query] = error.code
