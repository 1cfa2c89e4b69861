"""Progress while a picture is made, with small previews; and a second picture that is stopped halfway."""

import sfumato
from sfumato.errors import Cancelled

pipe = sfumato.load_pipeline("pocket")

for event in pipe.stream("a penguin on a green background", seed=4, steps=20):
    if isinstance(event, sfumato.Generation):
        event.images[0].save("penguin.png")
    elif event.preview is not None and event.step % 5 == 0:
        event.preview().save(f"preview-{event.step:02d}.png")  # 16×16: a pixel a latent cell, nearly free
        print(f"{event.step} of {event.steps} steps, noise level {event.sigma:.2f}")

stop = sfumato.Cancellation()


def halfway(event: sfumato.Progress) -> None:
    if event.stage == "denoise" and event.step == event.steps // 2:
        stop.cancel()  # from any thread: another one, a signal handler, a web request that went away


try:
    pipe.generate("a crown", steps=20, on_progress=halfway, cancellation=stop)
except Cancelled as error:
    print(f"stopped: {error}")
