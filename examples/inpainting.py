"""Inpainting: what is white in the mask is made anew, the rest keeps its pixels."""

from PIL import Image, ImageDraw

import sfumato

pipe = sfumato.load_pipeline("pocket")
face = pipe.generate("a grinning face", seed=1, steps=30).images[0]

mask = Image.new("L", face.size, "black")
ImageDraw.Draw(mask).rectangle((0, 72, 128, 128), fill="white")
result = pipe.generate("a face with a medical mask", init_image=face, mask=mask, strength=1.0, seed=5, steps=30)

top = (0, 0, 128, 64)
assert result.images[0].crop(top).tobytes() == face.crop(top).tobytes()
face.save("before.png")
result.images[0].save("after.png")
