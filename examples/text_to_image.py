"""Text to image: each picture has a seed of its own, and the same seed gives the same picture, alone or not."""

import sfumato

pipe = sfumato.load_pipeline("pocket")  # or "v1-4" after `sfumato models pull v1-4`, or the path of a file of your own
result = pipe.generate(["an astronaut riding a horse", "a penguin on a green background"], count=2, seed=7, steps=20)

for image, request in zip(result.images, result.requests, strict=True):
    image.save(f"{request.prompt.replace(' ', '-')}-{request.seed}.png")

alone = pipe.generate("an astronaut riding a horse", seed=8, steps=20)
assert alone.images[0].tobytes() == result.images[1].tobytes()
