"""`/livez`, `/readyz`, `/metrics`: for whoever watches the server."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

router = APIRouter()


@router.get("/livez")
async def livez() -> dict[str, Any]:
    """200 while the process answers."""
    return {"live": True}


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """200 while jobs are taken and a worker is there for them, else 503."""
    ready = request.app.state.dispatcher.is_ready
    return JSONResponse({"ready": ready}, 200 if ready else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
