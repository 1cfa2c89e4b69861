"""A script written for diffusers, with one line changed: the import."""

import torch

# was: from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from sfumato.compat.diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("pocket", torch_dtype=torch.float32)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
pipe = pipe.to("cuda" if torch.cuda.is_available() else "cpu")

generator = torch.Generator("cpu").manual_seed(2)
images = pipe("a rocket", num_inference_steps=20, guidance_scale=2.0, generator=generator).images
images[0].save("rocket.png")
