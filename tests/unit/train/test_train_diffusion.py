"""The diffusion task: targets, noise, captions, and the whole loop beside one written the usual way with diffusers."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import diffusers
import pytest
import torch
import torch.nn.functional as F
import transformers
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.training_utils import EMAModel
from torch import Tensor

import sfumato
from sfumato.errors import InvalidConfig
from sfumato.models.clip_text import DIFFUSERS as TEXT_LAYOUT
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet_config import UNetConfig
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.inputs.caption_dropout import drawn_caption, token_window
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.encoded_latents import LatentSample
from sfumato.train.inputs.sample_order import sample_index
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.tasks.caption_head import seen_positions
from sfumato.train.tasks.diffusion_task import TARGETS, DiffusionTask, DiffusionTraining, LatentDiffusion, Validation
from sfumato.train.tasks.noise_levels import NoiseConfig
from sfumato.train.trainer import train
from support.tiny import CROSS, PLAIN

TOKENIZER = Tokenizer.from_folder(Path(sfumato.__file__).parent / "assets" / "v1" / "tokenizer")
WORDS = ("red circle", "blue square", "green star", "yellow heart", "black dog")
UNET = UNetConfig(
    block_channels=(32, 64),
    attention=(True, False),
    layers_per_block=1,
    heads=(4, 4),
    depth=(1, 1),
    context_dim=16,
    norm_groups=8,
    sample_size=8,
)
TEXT = ClipTextConfig(width=16, hidden=32, layers=1, heads=2)


class Posteriors:
    """Random moments, one word pair each."""

    def __init__(self, count: int = 5) -> None:
        generator = torch.Generator().manual_seed(1)
        self.means = torch.randn(count, 4, 8, 8, generator=generator) * 5.0
        self.logvars = torch.randn(count, 4, 8, 8, generator=generator) - 2.0

    def __len__(self) -> int:
        return len(self.means)

    def latents(self, index: int) -> LatentSample:
        return LatentSample(mean=self.means[index], logvar=self.logvars[index], captions=(WORDS[index],))


def configured(noise: NoiseConfig | None = None, **options: object) -> DiffusionTraining:
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=10, weight_decay=0.01)
    run = RunConfig(steps=50, batch=4, accumulate=2, validate_every=0, log_every=1, seed=7, optimizer=optimizer)
    fields = {"unet": UNET, "text_encoder": TEXT, "run": run, "caption_dropout": 0.3}
    return DiffusionTraining(noise=noise or NoiseConfig(), **{**fields, **options})


def theirs(config: DiffusionTraining, module: LatentDiffusion):
    """The same networks as diffusers and transformers have them."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=(CROSS, PLAIN),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    unet.load_state_dict(module.unet.state_dict())
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=49408,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            hidden_act="quick_gelu",
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )
    names = set(text.state_dict())
    text.load_state_dict(
        {
            next(name for name in TEXT_LAYOUT.names(ours) if name in names): tensor
            for ours, tensor in module.text_encoder.state_dict().items()
        }
    )
    return unet, text


def test_fifty_steps_have_the_losses_of_a_diffusers_loop(tmp_path: Path) -> None:
    """The usual training script: DDPMScheduler.add_noise, the UNet's forward, MSE, clipping, AdamW, warm-up."""
    config = configured()
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, ema_decay=0.9))
    data = Posteriors()
    task = DiffusionTask(config, data, TOKENIZER)
    torch.manual_seed(0)
    start = task.build()
    assert isinstance(start, LatentDiffusion)
    unet, text = theirs(config, start)
    text.requires_grad_(False)
    scheduler = diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=0.01)
    average = EMAModel(unet.parameters(), decay=0.9, update_after_step=-1)  # -1: the first update has LDM's decay
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    expected = []
    for step in range(50):
        draws = Draws(7, step, range(4 * step, 4 * step + 4))
        rows = [sample_index(number, 5, 7) for number in draws.numbers]
        posterior = DiagonalGaussianDistribution(torch.cat([data.means[rows], data.logvars[rows]], dim=1))
        latents = (posterior.mean + posterior.std * draws.normal("posterior", (4, 8, 8))) * 0.18215
        captions = [
            drawn_caption((WORDS[row],), 0.3, draws.generator("caption", number))
            for row, number in zip(rows, draws.numbers, strict=True)
        ]
        ids = torch.stack([token_window(TOKENIZER, caption) for caption in captions])
        timesteps = (draws.uniform("timestep") * 1000).long()
        noise = draws.normal("noise", (4, 8, 8))
        answer = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, text(ids).last_hidden_state).sample
        loss = F.mse_loss(answer, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rates.step()
        average.step(unet.parameters())
        expected.append(loss.item())
    outcome = train(task, config, tmp_path, start=start)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    torch.testing.assert_close(
        torch.tensor([line["loss"] for line in lines]), torch.tensor(expected), atol=1e-5, rtol=0.0
    )
    trained = outcome.state.module
    assert isinstance(trained, LatentDiffusion)
    for name, parameter in unet.named_parameters():
        torch.testing.assert_close(trained.unet.get_parameter(name), parameter, atol=1e-3, rtol=0.0)
    published = outcome.state.ema.module
    for (name, _), shadow in zip(unet.named_parameters(), average.shadow_params, strict=True):
        torch.testing.assert_close(published.unet.get_parameter(name), shadow, atol=1e-3, rtol=0.0)
    tenths = [[line.get(f"error_at_noise_{i}") for i in range(10)] for line in lines]
    assert all(sum(error is not None for error in errors) in range(1, 5) for errors in tenths)
    for name, tensor in start.text_encoder.state_dict().items():
        assert torch.equal(tensor, outcome.state.ema.module.text_encoder.state_dict()[name])


def test_the_text_encoder_learns_when_it_has_a_rate(tmp_path: Path) -> None:
    options = configured(text_rate=0.3)
    config = dataclasses.replace(options, run=dataclasses.replace(options.run, steps=2))
    task = DiffusionTask(config, Posteriors(), TOKENIZER)
    before = task.build()
    weights = {name: tensor.clone() for name, tensor in before.named_parameters()}
    outcome = train(task, config, tmp_path, start=before)
    moved = {name for name, tensor in outcome.state.module.named_parameters() if not torch.equal(tensor, weights[name])}
    assert moved == set(weights)
    assert [group["lr"] / group["rate_scale"] for group in outcome.state.optimizer.param_groups] == [2e-4, 2e-4]
    assert outcome.state.optimizer.param_groups[1]["lr"] == pytest.approx(0.3 * 2e-4)


def test_the_caption_head_adds_its_share_and_teaches_the_text_encoder() -> None:
    config = configured(text_rate=0.3, caption_head=0.5, components=4)
    data = Posteriors()
    task = DiffusionTask(config, data, TOKENIZER)
    module = task.build()
    assert isinstance(module, LatentDiffusion)
    assert module.head is not None
    module.head.fit(data.means)
    draws = Draws(7, 0, range(4))
    batch = task.load(draws)
    loss, measured = task.loss(module, batch, draws)
    torch.testing.assert_close(loss, measured["error"] + 0.5 * measured["unexplained"])
    components = ((batch["latents"] / 0.18215).flatten(1) - module.head.mean) @ module.head.basis
    states = module.text_encoder(batch["tokens"])
    predicted = module.head(states, seen_positions(draws, 77))
    torch.testing.assert_close(measured["unexplained"], F.mse_loss(predicted, components))
    weights = set(module.head.parameters()) | set(module.text_encoder.parameters())
    assert weights == set(task.groups(module)[1].parameters)
    with pytest.raises(InvalidConfig, match="text_rate"):
        configured(caption_head=0.5)


def test_errors_are_tallied_by_noise_level() -> None:
    task = DiffusionTask(configured(), Posteriors(), TOKENIZER)
    tally = task._by_noise(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 99, 100, 999]))
    assert tally[[0, 1, 9]].tolist() == [[3.0, 2.0], [4.0, 1.0], [8.0, 1.0]]
    assert float(tally.sum()) == 19.0


def test_targets_are_diffusers() -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    t = torch.tensor([0, 500, 999])
    alphas = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    velocity = TARGETS["v_prediction"](latents, noise, alphas)
    torch.testing.assert_close(velocity, scheduler.get_velocity(latents, noise, t))
    assert torch.equal(TARGETS["epsilon"](latents, noise, alphas), noise)


class Recorder(torch.nn.Module):
    """In the UNet's place: remembers what it was shown, and answers zeros."""

    def forward(self, latents: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        self.latents, self.timesteps, self.context = latents, timesteps, context
        return torch.zeros_like(latents)


def recorded(noise: NoiseConfig) -> tuple[Recorder, Tensor, Draws, dict[str, Tensor]]:
    task = DiffusionTask(configured(noise), Posteriors(), TOKENIZER)
    module = task.build()
    assert isinstance(module, LatentDiffusion)
    recorder = Recorder()
    module.unet = recorder
    draws = Draws(7, 3, range(12, 16))
    batch = task.load(draws)
    loss, _ = task.loss(module, batch, draws)
    return recorder, loss, draws, batch


def test_noise_offset_is_part_of_the_target_and_perturbation_is_not() -> None:
    """Zeros for an answer make the loss the target's mean square."""
    alphas = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    recorder, loss, draws, batch = recorded(NoiseConfig(offset=0.1, perturbation=0.2))
    noise = draws.normal("noise", (4, 8, 8)) + 0.1 * draws.normal("offset", (4, 1, 1))
    torch.testing.assert_close(loss, noise.square().mean())
    shown = noise + 0.2 * draws.normal("perturbation", (4, 8, 8))
    signal = alphas[recorder.timesteps].view(-1, 1, 1, 1)
    expected = signal.sqrt() * batch["latents"] + (1 - signal).sqrt() * shown
    torch.testing.assert_close(recorder.latents, expected, atol=2e-5, rtol=1e-4)


def test_each_sample_is_weighed_by_its_own_timestep() -> None:
    recorder, loss, draws, _ = recorded(NoiseConfig(weighting="min_snr"))
    alphas = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    snr = (alphas / (1 - alphas))[recorder.timesteps]
    errors = draws.normal("noise", (4, 8, 8)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, (snr.clamp(max=5.0) / snr * errors).mean(), rtol=1e-4, atol=1e-6)


def test_stratified_timesteps_take_one_from_each_share() -> None:
    recorder, *_ = recorded(NoiseConfig(stratified=True))
    assert sorted((recorder.timesteps // 250).tolist()) == [0, 1, 2, 3]


def test_captions_are_windows_as_at_inference_and_drop_out_as_often_as_asked() -> None:
    reference = transformers.CLIPTokenizer.from_pretrained(Path(sfumato.__file__).parent / "assets/v1/tokenizer")
    for caption in ("", "a red circle", "word " * 100):
        expected = reference(caption, padding="max_length", truncation=True, max_length=77).input_ids
        assert token_window(TOKENIZER, caption).tolist() == expected
    draws = Draws(0, 0, range(2000))
    drawn = [drawn_caption(("one", "two"), 0.25, draws.generator("caption", number)) for number in draws.numbers]
    for caption, share in (("", 0.25), ("one", 0.375), ("two", 0.375)):
        assert drawn.count(caption) / 2000 == pytest.approx(share, abs=0.04)
    assert drawn_caption((), 0.0, draws.generator("caption", 0)) == ""


def test_tags_change_places_but_for_the_first() -> None:
    """Every order of the others comes as often as any other."""
    draws = Draws(0, 0, range(3000))
    drawn = [
        drawn_caption(("a cat, black,tail , paws",), 0.0, draws.generator("caption", number), shuffle_tags=True)
        for number in draws.numbers
    ]
    orders = [", ".join(("a cat", *order)) for order in itertools.permutations(("black", "tail", "paws"))]
    assert set(drawn) == set(orders)
    for order in orders:
        assert drawn.count(order) / 3000 == pytest.approx(1 / 6, abs=0.03)
    assert drawn_caption(("a cat",), 0.0, draws.generator("caption", 0), shuffle_tags=True) == "a cat"
    plain = DiffusionTask(configured(caption_dropout=0.0), Posteriors(), TOKENIZER)
    shuffling = DiffusionTask(configured(caption_dropout=0.0, shuffle_tags=True), Tagged(), TOKENIZER)
    first = Draws(7, 0, range(4))
    assert not torch.equal(plain.load(first)["tokens"], shuffling.load(first)["tokens"])


class Tagged(Posteriors):
    """With captions of many parts."""

    def latents(self, index: int) -> LatentSample:
        return dataclasses.replace(super().latents(index), captions=(f"{WORDS[index]}, one, two, three, four, five",))


def test_validation_measures_the_captions_pull_and_draws_the_prompts(tmp_path: Path) -> None:
    config = configured(sample_steps=3)
    held_out = Posteriors(3)

    def decode(latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)

    validation = Validation(samples=held_out, prompts=("red circle", "blue square"), decode=decode)
    task = DiffusionTask(config, Posteriors(), TOKENIZER, validation)
    module = task.build()
    measured = task.validate(module, tmp_path / "sheet.png")
    assert measured["score"] == measured["error"] != measured["error_other_caption"]
    assert (tmp_path / "sheet.png").stat().st_size > 0
    again = task.validate(module, tmp_path / "again.png")
    assert again == measured
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()


def test_networks_that_dont_fit_are_refused() -> None:
    with pytest.raises(InvalidConfig, match="context_dim"):
        configured(text_encoder=dataclasses.replace(TEXT, width=32))
