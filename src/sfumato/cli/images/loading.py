"""Models for commands: one in memory at a time, loaded as the settings say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sfumato.cli.options.settings import RunSettings
from sfumato.progress import OnProgress, ignore

if TYPE_CHECKING:
    from sfumato.pipeline.pipeline import Pipeline
    from sfumato.pipeline.request import Request


class Models:
    """Gives the pipeline a request needs, and lets go of the last one when another model is asked for."""

    def __init__(self, settings: RunSettings, on_progress: OnProgress = ignore) -> None:
        self._settings, self._on_progress = settings, on_progress
        self._loaded: tuple[tuple[str, str | None], Pipeline] | None = None

    def check(self, requests: Sequence[Request]) -> None:
        """Find what can't be made of the requests before any picture is made. Each model is loaded, the first one
        last."""
        groups: dict[tuple[str, str | None], list[Request]] = {}
        for request in requests:
            groups.setdefault((request.model, request.vae), []).append(request)
        for group in reversed(groups.values()):
            self.pipeline(group[0]).check(group)

    def pipeline(self, request: Request) -> Pipeline:
        """Load what the request names, unless it is loaded. Raises as `load_pipeline` does."""
        from sfumato.pipeline.load_pipeline import load_with

        key = (request.model, request.vae)
        if self._loaded is not None and self._loaded[0] == key:
            return self._loaded[1]
        self._loaded = None
        settings = self._settings
        settings.use_threads()
        pipeline = load_with(
            replace(settings.loading, vae=request.vae),
            request.model,
            safety=settings.safety,
            watermark=settings.watermark,
            on_progress=self._on_progress,
        )
        self._loaded = key, pipeline
        return pipeline
