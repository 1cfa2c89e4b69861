"""The model card's scripts with their import line changed, and what people write around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import load_pipeline
from sfumato.compat.diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from sfumato.errors import InvalidConfig, InvalidRequest
from support.tiny_pipeline import reference_pipeline

FAST = {"num_inference_steps": 2}

# Both samples of the card, word for word but for the import line, the model's id, and the device.
CARD = """
import torch
from torch import autocast
from sfumato.compat.diffusers import StableDiffusionPipeline

model_id = MODEL
device = "cpu"

pipe = StableDiffusionPipeline.from_pretrained(model_id, use_auth_token=True)
pipe = pipe.to(device)

prompt = "a photograph of an astronaut riding a horse"
generator = torch.Generator(device=device).manual_seed(0)
with autocast("cuda"):
    image = pipe(prompt, generator=generator)["sample"][0]

image.save("astronaut_rides_horse.png")
"""
CARD_LMS = """
import torch
from torch import autocast
from sfumato.compat.diffusers import StableDiffusionPipeline, LMSDiscreteScheduler

model_id = MODEL
device = "cpu"

lms = LMSDiscreteScheduler(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
)
pipe = StableDiffusionPipeline.from_pretrained(model_id, scheduler=lms, use_auth_token=True)
pipe = pipe.to(device)

prompt = "a photograph of an astronaut riding a horse"
generator = torch.Generator(device=device).manual_seed(0)
with autocast("cuda"):
    image = pipe(prompt, generator=generator)["sample"][0]

image.save("astronaut_rides_horse.png")
"""
LATER = """
import torch
from sfumato.compat.diffusers import StableDiffusionPipeline, EulerDiscreteScheduler

model_id = MODEL
scheduler = EulerDiscreteScheduler.from_pretrained(model_id, subfolder="scheduler")
pipe = StableDiffusionPipeline.from_pretrained(model_id, scheduler=scheduler, torch_dtype=torch.float32)
pipe = pipe.to("cpu")
pipe.enable_attention_slicing()

prompt = "a photograph of an astronaut riding a horse"
generator = torch.Generator().manual_seed(0)
image = pipe(prompt, generator=generator).images[0]

image.save("astronaut_rides_horse.png")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    reference_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipe(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.filterwarnings("ignore:.*autocast")
@pytest.mark.parametrize(
    ("script", "sampler", "spacing"),
    [(CARD, "plms", None), (CARD_LMS, "k_lms", None), (LATER, "euler", "leading")],
    ids=["card", "card with LMS", "later"],
)
def test_the_cards_scripts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, sampler: str, spacing: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(script.replace("MODEL", repr(str(folder))), "card.py", "exec"), {})
    pipeline = load_pipeline(folder, device="cpu", safety="off", watermark=False)
    expected = pipeline.generate(
        "a photograph of an astronaut riding a horse", seed=0, sampler=sampler, spacing=spacing
    )
    with Image.open(tmp_path / "astronaut_rides_horse.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected.images[0]))


def test_every_way_to_the_pictures(pipe: StableDiffusionPipeline) -> None:
    output = pipe("crown", generator=torch.Generator().manual_seed(1), **FAST)
    assert output.images is output["images"] is output["sample"] is output[0]
    assert output.nsfw_content_detected is output["nsfw_content_detected"] is output[1] is None
    images, flags = pipe("crown", generator=torch.Generator().manual_seed(1), return_dict=False, **FAST)
    assert (np.asarray(images[0]) == np.asarray(output.images[0])).all()
    assert flags is None
    with pytest.raises(KeyError):
        output["video"]


def test_numbers_instead_of_pictures(pipe: StableDiffusionPipeline) -> None:
    picture = pipe("crown", generator=torch.Generator().manual_seed(1), **FAST).images[0]
    numbers = pipe("crown", generator=torch.Generator().manual_seed(1), output_type="np", **FAST).images
    assert (numbers.shape, numbers.dtype) == ((1, 32, 32, 3), np.float32)
    np.testing.assert_array_equal((numbers[0] * 255).round(), np.asarray(picture))


def test_the_global_seed_counts_where_no_generator_is_given(pipe: StableDiffusionPipeline) -> None:
    """As in diffusers, whose `randn_tensor` then draws from torch's own generator."""
    torch.manual_seed(5)
    first, second = (np.asarray(pipe("crown", **FAST).images[0]) for _ in range(2))
    given = np.asarray(pipe("crown", generator=torch.Generator().manual_seed(5), **FAST).images[0])
    np.testing.assert_array_equal(first, given)
    assert (first != second).any()


@pytest.mark.filterwarnings("ignore:.*autocast")
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_autocast_changes_nothing(pipe: StableDiffusionPipeline, device: str) -> None:
    plain = pipe("crown", generator=torch.Generator().manual_seed(1), **FAST).images[0]
    with torch.autocast(device, dtype=torch.bfloat16):
        cast = pipe("crown", generator=torch.Generator().manual_seed(1), **FAST).images[0]
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(cast))


def test_moving(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    assert pipe.to("cpu") is pipe
    assert pipe.to(torch.device("cpu")).device == torch.device("cpu")
    assert pipe.to("cpu", torch.bfloat16).dtype == torch.bfloat16
    assert pipe.pipeline.model.unet.conv_in.weight.dtype == torch.bfloat16
    assert pipe.to(torch.float32).dtype == torch.float32
    if not torch.cuda.is_available():
        with pytest.raises(InvalidRequest, match="sees no CUDA or ROCm device"):
            pipe.to("cuda")
    with pytest.raises(InvalidRequest, match=r"torch\.float16"):
        pipe.to(torch.int8)


def test_moving_by_name_or_number(pipe: StableDiffusionPipeline) -> None:
    places: dict[str, Any]
    for places in ({"device": "cpu"}, {"torch_device": "cpu"}, {"device": torch.device("cpu"), "dtype": torch.float32}):
        assert pipe.to(**places) is pipe
    assert pipe.to(None, silence_dtype_warnings=True).device == torch.device("cpu")
    assert pipe.to(torch_device="cpu", torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert pipe.to(dtype=torch.float32).dtype == torch.float32
    with pytest.raises(InvalidRequest, match="2 devices were given, cuda and cpu"):
        pipe.to("cpu", device="cuda")
    with pytest.raises(InvalidRequest, match="device 'cuda:99'"):
        pipe.to(99)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "float16", None])
def test_dtypes(folder: Path, dtype: Any) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    assert str(pipe.dtype).removeprefix("torch.") == str(dtype or "float32").removeprefix("torch.")


def test_switches_without_effect(pipe: StableDiffusionPipeline) -> None:
    before = pipe("crown", generator=torch.Generator().manual_seed(1), **FAST).images[0]
    for name in (
        "enable_attention_slicing",
        "disable_attention_slicing",
        "enable_xformers_memory_efficient_attention",
        "disable_xformers_memory_efficient_attention",
        "enable_vae_slicing",
        "disable_vae_slicing",
    ):
        getattr(pipe, name)()
        assert "No effect" in getattr(type(pipe), name).__doc__
    pipe.set_progress_bar_config(disable=True)
    after = pipe("crown", generator=torch.Generator().manual_seed(1), **FAST).images[0]
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


def test_vae_tiling_blends_and_stops(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    latents = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(1))
    whole = pipe.pipeline.decode(latents)
    pipe.enable_vae_tiling()
    assert pipe.pipeline.vae_tiling == "blend"
    assert not torch.allclose(pipe.pipeline.decode(latents), whole, atol=1e-3)
    pipe.disable_vae_tiling()
    assert torch.equal(pipe.pipeline.decode(latents), whole)


def test_schedulers_are_exchanged_or_refused_when_assigned(folder: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    assert (pipe.sampler, pipe.spacing) == ("euler", "trailing")
    with pytest.raises(InvalidConfig, match="beta_start"):
        pipe.scheduler = EulerDiscreteScheduler()
    assert (pipe.sampler, pipe.spacing) == ("euler", "trailing")
    given = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False)
    assert StableDiffusionPipeline.from_pretrained(folder, scheduler=given).sampler == "ddim"


def test_a_scheduler_of_diffusers_itself_is_refused(folder: Path) -> None:
    import diffusers

    with pytest.raises(InvalidRequest, match="import it from sfumato"):
        StableDiffusionPipeline.from_pretrained(folder, scheduler=diffusers.PNDMScheduler())


def test_other_classes_share_the_model(pipe: StableDiffusionPipeline) -> None:
    for other in (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline):
        assert other(**pipe.components).pipeline is pipe.pipeline
        assert other.from_pipe(pipe).scheduler is pipe.scheduler


def test_the_first_names_of_the_input_pictures(pipe: StableDiffusionPipeline) -> None:
    picture = Image.new("RGB", (32, 32), "teal")
    image_to_image = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    old = image_to_image("crown", init_image=picture, strength=0.5, generator=torch.Generator(), **FAST)
    new = image_to_image("crown", picture, 0.5, generator=torch.Generator(), **FAST)
    np.testing.assert_array_equal(np.asarray(old.images[0]), np.asarray(new.images[0]))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output_type": "jpeg"}, "output_type 'jpeg'"),
        ({"output_type": None}, "output_type None"),
        ({"callback": print}, "'callback'"),
        ({"callback_on_step_end": print}, "'callback_on_step_end'"),
        ({"prompt_embeds": torch.zeros(1)}, "'prompt_embeds'"),
        ({"timesteps": [1]}, "'timesteps'"),
        ({"height": 33}, "height 33"),
        ({"num_inference_steps": 0}, "steps 0"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"negative_prompt": 3}, "negative_prompt must be"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 pictures"),
        ({"generator": 42}, "generator 42"),
        ({"generator": [42]}, "generator 42"),
        ({"guidance_scale": None}, "guidance_scale None"),
        ({"guidance_scale": "7"}, "guidance_scale '7'"),
        ({"guidance_scale": np.float32("nan")}, "guidance_scale nan"),
        ({"num_images_per_prompt": None}, "num_images_per_prompt None"),
        ({"num_images_per_prompt": True}, "num_images_per_prompt True"),
        ({"eta": None}, "eta None"),
        ({"latents": np.zeros((1, 4, 8, 8))}, "not a ndarray"),
        ({"latents": torch.zeros(4, 8, 8)}, "of shape (4, 8, 8)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_what_a_call_cannot_do_is_named(pipe: StableDiffusionPipeline, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        pipe("crown", **options)
    assert named in str(caught.value)


def test_arguments_that_are_none_mean_nothing(pipe: StableDiffusionPipeline) -> None:
    pipe("crown", prompt_embeds=None, callback=None, cross_attention_kwargs=None, **FAST)


def test_pictures_that_are_none_of_pils(pipe: StableDiffusionPipeline) -> None:
    with pytest.raises(InvalidRequest, match="image must be one PIL picture, not Tensor"):
        StableDiffusionImg2ImgPipeline.from_pipe(pipe)("crown", torch.zeros(1, 3, 8, 8))
    with pytest.raises(InvalidRequest, match="mask_image must be one PIL picture, not NoneType"):
        StableDiffusionInpaintPipeline.from_pipe(pipe)("crown", Image.new("RGB", (32, 32)))


def test_arguments_of_loading(folder: Path) -> None:
    StableDiffusionPipeline.from_pretrained(
        folder,
        low_cpu_mem_usage=True,
        use_safetensors=True,
        feature_extractor=None,
        safety_checker=None,
        cache_dir="elsewhere",
        local_files_only=True,
        device_map=None,
        quantization_config=None,
        use_onnx=False,
    )
    assert StableDiffusionPipeline.from_pretrained(folder, device_map="cpu").device == torch.device("cpu")
    with pytest.raises(InvalidRequest, match="device 'abacus'"):
        StableDiffusionPipeline.from_pretrained(folder, device_map="abacus")
    with pytest.raises(InvalidRequest, match="never spread over several"):
        StableDiffusionPipeline.from_pretrained(folder, device_map={"unet": 0})
    with pytest.raises(InvalidRequest, match="'quantization_config'"):
        StableDiffusionPipeline.from_pretrained(folder, quantization_config={"bits": 4})
    with pytest.raises(InvalidRequest, match="'custom_pipeline'"):
        StableDiffusionPipeline.from_pretrained(folder, custom_pipeline="mega")
    with pytest.raises(InvalidRequest, match="safety_checker can only be None"):
        StableDiffusionPipeline.from_pretrained(folder, safety_checker=print)
    with pytest.raises(InvalidRequest, match="int8"):
        StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.int8)


def test_offloading_moves_the_model_whole_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    before = pipe("crown", generator=torch.Generator().manual_seed(1), **FAST).images[0]
    for enable in (pipe.enable_model_cpu_offload, pipe.enable_sequential_cpu_offload):
        caplog.clear()
        enable(device="cpu")
        assert "nothing is offloaded: the whole model stays on cpu" in caplog.text
    after = pipe("crown", generator=torch.Generator().manual_seed(1), **FAST).images[0]
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    with pytest.raises(InvalidRequest, match="cuda:99"):
        pipe.enable_model_cpu_offload(gpu_id=99)
