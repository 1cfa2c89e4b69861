"""Image to image: a rough drawing says where things are, the prompt what they are."""

from PIL import Image, ImageDraw

import sfumato

sketch = Image.new("RGB", (128, 128), "white")
ImageDraw.Draw(sketch).ellipse((24, 24, 104, 104), fill=(90, 170, 60))
sketch.save("sketch.png")

pipe = sfumato.load_pipeline("pocket")
for strength in (0.2, 0.3, 0.5):  # the part of the way from the picture to pure noise that is walked back
    result = pipe.generate("a red apple", init_image=sketch, strength=strength, seed=3, steps=30)
    result.images[0].save(f"apple-{strength}.png")
