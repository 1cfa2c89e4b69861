"""What is written into pictures is read back, whatever the prompt; what others wrote is read with distrust."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import pixels_sha256
from sfumato.pictures.source import ImageSource
from sfumato.pipeline.metadata import SOURCE_TYPE, parameters_of, provenance_of
from sfumato.pipeline.parameters_text import SAMPLER_NAMES, format_parameters, parse_parameters
from sfumato.pipeline.provenance import Provenance
from sfumato.pipeline.request import Request
from sfumato.pipeline.saving import encode_picture
from support.recorded import record

SUFFIXES = [".png", ".jpg", ".webp", *[".avif"] * features.check("avif")]
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)

NASTY = st.text() | st.text(alphabet='",:\\\n\r\t ()<>&\0\ufffe\uffff\U0001f600é漢|-aSteps1', max_size=40)


def provenance(prompt: str = "a red heart", negative_prompt: str = "", **changes: object) -> Provenance:
    request = Request(prompt=prompt, negative_prompt=negative_prompt, seed=42, width=24, height=16)
    given = {"request": request, "width": 24, "height": 16, "pixels_sha256": pixels_sha256(PIXELS)} | changes
    return record(**given)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None)
@given(prompt=NASTY, negative_prompt=NASTY, name=NASTY)
def test_files_give_the_record_back(suffix: str, prompt: str, negative_prompt: str, name: str) -> None:
    written = provenance(prompt, negative_prompt, model_name=name, truncated=prompt)
    data = encode_picture(PIXELS, suffix, written)
    assert provenance_of(data, "x") == written
    parameters = parameters_of(data, "x")
    assert parameters == parse_parameters(format_parameters(written))
    assert SOURCE_TYPE.encode() in data


def lines_of(text: str) -> str:
    """What a line-by-line reader can keep of a prompt."""
    return "\n".join(line.strip() for line in text.split("\n"))


@settings(deadline=None)
@given(prompt=NASTY, negative_prompt=NASTY, name=NASTY.filter(str.strip))
def test_parameters_text_gives_the_prompts_and_settings_back(prompt: str, negative_prompt: str, name: str) -> None:
    text = format_parameters(provenance(prompt, negative_prompt, model_name=name))
    parameters = parse_parameters(text)
    leading = len(prompt) - len(prompt.lstrip())
    assert parameters.prompt == lines_of(prompt[leading:] if prompt.strip() else "")
    assert (
        parameters.negative_prompt == lines_of(negative_prompt).lstrip("\n ")
        or negative_prompt != negative_prompt.strip()
    )
    assert parameters.settings["Model"] == name
    assert parameters.settings["Seed"] == "42"
    assert parameters.settings["Size"] == "24x16"


def test_parameters_text_is_what_other_programs_write() -> None:
    written = provenance("a cat, sitting", "ugly")
    request = written.request.replace(sampler="euler_ancestral", spacing="karras", steps=20, guidance_scale=7.0)
    assert format_parameters(dataclasses.replace(written, request=request)) == (
        "a cat, sitting\n"
        "Negative prompt: ugly\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 42, Size: 24x16, "
        "Model hash: 0123456789, Model: pocket, RNG: CPU, Version: sfumato 0.1.0"
    )


def test_every_sampler_and_a_profile_s_own_spacing_have_a_name_there() -> None:
    assert set(SAMPLERS) <= set(SAMPLER_NAMES)
    request = Request(prompt="a", sampler="dpmpp_2m", profile="a1111")
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in format_parameters(provenance(request=request))


def test_parameters_text_has_every_setting_that_has_a_name_there() -> None:
    source = ImageSource(sha256="0" * 64, width=9, height=9)
    request = Request(
        prompt="a",
        sampler="ddim",
        eta=0.5,
        clip_skip=1,
        noise="cuda",
        variation_seed=3,
        variation_strength=0.25,
        init_image=source,
        strength=0.6,
    )
    found = parse_parameters(format_parameters(provenance(request=request))).settings
    assert found["RNG"] == "NV"
    assert found["Eta"] == "0.5"
    assert found["Clip skip"] == "2"  # there, 1 is the last layer, so 2 skips one
    assert (found["Variation seed"], found["Variation seed strength"]) == ("3", "0.25")
    assert found["Denoising strength"] == "0.6"
    request = Request(prompt="a", upscale=2.0, upscale_strength=0.4)
    found = parse_parameters(format_parameters(provenance(request=request, width=48, height=32))).settings
    assert (found["Hires upscale"], found["Denoising strength"], found["Size"]) == ("2", "0.4", "24x16")


def test_parameters_text_names_a_vae_without_its_folder() -> None:
    request = Request(prompt="a", vae="/home/someone/vae.safetensors")
    assert "VAE: vae.safetensors," in format_parameters(provenance(request=request))


def test_parameters_of_other_programs_are_read() -> None:
    parameters = parse_parameters(
        "masterpiece, (castle:1.2)\nby the sea\nNegative prompt: blurry,\nlow: quality\n"
        'Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 1, Size: 512x768, Model: "a, b: \\"c\\"", '
        "Denoising strength: 0.5, Clip skip: 2, Hires upscaler: R-ESRGAN 4x+, Version: v1.6.0"
    )
    assert parameters.prompt == "masterpiece, (castle:1.2)\nby the sea"
    assert parameters.negative_prompt == "blurry,\nlow: quality"
    assert parameters.settings["Sampler"] == "DPM++ 2M Karras"
    assert parameters.settings["Model"] == 'a, b: "c"'
    assert parameters.settings["Hires upscaler"] == "R-ESRGAN 4x+"
    assert parse_parameters("a cat\nin a hat").prompt == "a cat\nin a hat"


@settings(deadline=None)
@given(st.text())
def test_any_parameters_text_is_read(text: str) -> None:
    parse_parameters(text)


@pytest.mark.parametrize("unit", ["a", " ", ":", ",", '"', "a:", 'a:"', 'a: "\\', "Negative prompt:\n"])
def test_reading_parameters_takes_linear_time(unit: str) -> None:
    parameters = parse_parameters(unit * 200_000)  # a quadratic reader needs hours and runs into the tests' time limit
    assert len(parameters.settings) in (0, 1)


@settings(deadline=None)
@given(
    st.sampled_from([field.name for field in dataclasses.fields(Provenance)]),
    st.none() | st.booleans() | st.floats() | st.lists(st.integers()),
)
def test_mistyped_records_are_refused_by_field(name: str, value: object) -> None:
    record = json.loads(provenance().to_json()) | {name: value}
    with pytest.raises(InvalidRequest, match=name):
        Provenance.from_json(json.dumps(record))


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "[" * 100_000, '{"request": 5}'])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="picture's metadata"):
        Provenance.from_json(text)


def test_unknown_and_impossible_fields_are_refused() -> None:
    record = json.loads(provenance().to_json())
    for changes in ({"future": 1}, {"threads": 0}, {"width": 2**40}, {"request": {"prompt": "a", "steps": 0}}):
        with pytest.raises(InvalidRequest):
            Provenance.from_json(json.dumps(record | changes))


def with_xmp(packet: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "WEBP", xmp=packet)
    return buffer.getvalue()


RDF = '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:s="urn:sfumato:1.0:"'


def test_a_packet_rewritten_with_an_attribute_is_read() -> None:
    written = provenance('a "red" heart')
    value = written.to_json().replace("&", "&amp;").replace('"', "&quot;")
    assert provenance_of(with_xmp(f'{RDF} s:provenance="{value}"/></rdf:RDF>'.encode()), "x") == written


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\xff\xfe<",
        b"<x",
        b"<x/>",
        f"{RDF}/></rdf:RDF>".encode(),
        b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>',
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><x>&a;</x>',
        b"<x>" * 100_000,
        ("<!DOCTYPE x>" + RDF + ' s:provenance="{}"/></rdf:RDF>').encode(),
    ],
)
def test_other_xmp_packets_say_nothing(packet: bytes) -> None:
    assert provenance_of(with_xmp(packet), "x") is None


def test_a_broken_record_in_a_file_is_named() -> None:
    packet = f"{RDF}><s:provenance>{{}}</s:provenance></rdf:Description></rdf:RDF>".encode()
    with pytest.raises(InvalidRequest, match=r"^cat\.webp: "):
        provenance_of(with_xmp(packet), "cat.webp")
