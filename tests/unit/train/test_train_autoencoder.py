"""The autoencoder's task: what learns, what doesn't, and that it learns to reconstruct."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sfumato.errors import InvalidConfig
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.progress import Cancellation
from sfumato.toml_files import read_config, to_toml
from sfumato.train.inputs.draws import Draws
from sfumato.train.inputs.image_tensors import psnr, scaled, to_bytes
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.tasks.autoencoder_task import (
    AutoencoderLoss,
    AutoencoderTask,
    AutoencoderTraining,
    TrainedAutoencoder,
)
from sfumato.train.tasks.equivariance import transformed
from sfumato.train.tasks.whitening import channel_statistics, whiten
from sfumato.train.trainer import train
from support.train_pictures import Shapes

TINY = AutoencoderConfig(block_channels=(8, 16), layers_per_block=1, norm_groups=4, sample_size=16)


def tiny(loss: AutoencoderLoss | None = None, **run: object) -> AutoencoderTraining:
    options = {"steps": 6, "batch": 4, "validate_every": 0, "optimizer": OptimizerConfig(learning_rate=2e-3)}
    return AutoencoderTraining(
        crop=16, model=TINY, loss=loss or AutoencoderLoss(), run=RunConfig(**{**options, **run}), first_logvar=-6.0
    )


def test_the_plain_loss_is_l1_plus_kl_by_hand() -> None:
    config = tiny(AutoencoderLoss(edges=0.0, kl=0.01))
    task = AutoencoderTask(config, Shapes(8, 16))
    torch.manual_seed(0)
    module = task.build()
    assert isinstance(module, TrainedAutoencoder)
    draws = Draws(0, 0, range(4))
    batch = task.load(draws)
    loss, measured = task.loss(module, batch, draws)
    pictures = batch["pictures"] / 127.5 - 1.0
    posterior = module.autoencoder.encode(pictures)
    noise = torch.stack([torch.randn(4, 8, 8, generator=draws.generator("posterior", n)) for n in range(4)])
    gaussian = torch.distributions.Normal(posterior.mean, torch.exp(0.5 * posterior.logvar))
    latents = gaussian.loc + gaussian.scale * noise
    kl = torch.distributions.kl_divergence(gaussian, torch.distributions.Normal(0.0, 1.0)).mean()
    l1 = F.l1_loss(module.autoencoder.decode(latents), pictures)
    torch.testing.assert_close(loss, l1 + 0.01 * kl)
    torch.testing.assert_close(measured["kl"], kl)
    summed, _ = AutoencoderTask(
        dataclasses.replace(config, loss=dataclasses.replace(config.loss, sums=True)), Shapes(8, 16)
    ).loss(module, batch, draws)
    torch.testing.assert_close(summed, l1 * 3 * 16 * 16 + 0.01 * kl * 4 * 8 * 8)


def test_every_term_counts_by_its_weight_and_the_coarse_one_is_of_cell_means() -> None:
    config = tiny(AutoencoderLoss(l1=0.7, coarse=2.0, edges=0.3, kl=0.01))
    task = AutoencoderTask(config, Shapes(8, 16))
    module = task.build()
    assert isinstance(module, TrainedAutoencoder)
    draws = Draws(0, 0, range(4))
    batch = task.load(draws)
    loss, measured = task.loss(module, batch, draws)
    weights = {"l1": 0.7, "coarse": 2.0, "edges": 0.3, "kl": 0.01}
    expected = sum(weight * measured[name] for name, weight in weights.items())
    torch.testing.assert_close(loss, expected)
    posterior = module.autoencoder.encode(scaled(batch["pictures"]))
    output = module.autoencoder.decode(posterior.sample(draws.normal("posterior", (4, 8, 8))))
    cells = (output - scaled(batch["pictures"])).reshape(4, 3, 8, 2, 8, 2).mean(dim=(3, 5))
    torch.testing.assert_close(measured["coarse"], cells.abs().mean())


def test_the_critic_starts_when_told_and_both_sides_move(tmp_path: Path) -> None:
    loss = AutoencoderLoss(adversarial=0.5, adversarial_from=3, adversarial_channels=4)
    config = dataclasses.replace(tiny(loss, steps=3, batch=2), crop=32)
    task = AutoencoderTask(config, Shapes(8, 32))
    before = train(task, config, tmp_path / "before").state.module
    torch.manual_seed(config.run.seed)
    first = task.build()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name]) == name.startswith("discriminator"), name
    longer = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=5))
    after = train(AutoencoderTask(longer, Shapes(8, 32)), longer, tmp_path / "after").state.module
    for name, parameter in after.named_parameters():
        assert not torch.equal(parameter, first.get_parameter(name)), name


def test_the_critics_gradient_is_of_its_own_loss_only() -> None:
    loss = AutoencoderLoss(adversarial=0.5, adversarial_from=0, adversarial_channels=4)
    config = dataclasses.replace(tiny(loss), crop=32)
    task = AutoencoderTask(config, Shapes(8, 32))
    module = task.build()
    assert isinstance(module, TrainedAutoencoder)
    assert module.discriminator is not None
    module.discriminator.eval()  # so that the second pass sees the same batch norms
    draws = Draws(0, 0, range(2))
    batch = task.load(draws)
    total, measured = task.loss(module, batch, draws)
    critic = list(module.discriminator.parameters())
    ours = torch.autograd.grad(total, critic, retain_graph=True)
    alone = torch.autograd.grad(measured["discriminator"], critic)
    for a, b in zip(ours, alone, strict=True):
        torch.testing.assert_close(a, b)
    assert float(measured["adaptive_weight"]) > 0.0


def test_the_learned_scale_is_in_the_optimizer_and_moves(tmp_path: Path) -> None:
    config = tiny(AutoencoderLoss(learned_scale=True))
    module = train(AutoencoderTask(config, Shapes(8, 16)), config, tmp_path).state.module
    assert isinstance(module, TrainedAutoencoder)
    assert module.log_scale is not None
    assert float(module.log_scale.detach()) != 0.0


def test_the_decoder_alone_learns_and_the_latents_stay(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny(), decoder_only=True)
    task = AutoencoderTask(config, Shapes(8, 16))
    torch.manual_seed(config.run.seed)
    first = task.build().state_dict()
    for name, tensor in train(task, config, tmp_path).state.module.state_dict().items():
        known = name.startswith(("autoencoder.encoder.", "autoencoder.quant_conv."))
        assert torch.equal(tensor, first[name]) == known, name


def test_latents_are_blurred_by_a_share_of_the_most_that_each_sample_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = Shapes(8, 64)
    most, numbers = 0.5, range(6)

    def decoded(noise: float, numbers: range) -> torch.Tensor:
        config = dataclasses.replace(tiny(), crop=64, latent_noise=noise)
        task, seen = AutoencoderTask(config, shapes), []
        torch.manual_seed(0)
        module = task.build()
        assert isinstance(module, TrainedAutoencoder)
        decode = module.autoencoder.decode
        monkeypatch.setattr(module.autoencoder, "decode", lambda z: (seen.append(z), decode(z))[1])
        draws = Draws(0, 0, numbers)
        task.loss(module, task.load(draws), draws)
        return seen[0]

    added = decoded(most, numbers) - decoded(0.0, numbers)
    shares = torch.tensor(
        [float(torch.rand((), generator=Draws(0, 0, [n]).generator("latent noise share", n))) for n in numbers]
    )
    torch.testing.assert_close(added.std(dim=(1, 2, 3)), most * shares, rtol=0.05, atol=1e-4)
    alone = decoded(most, range(2, 3)) - decoded(0.0, range(2, 3))
    torch.testing.assert_close(alone[0], added[2], rtol=0, atol=1e-5)
    with pytest.raises(InvalidConfig, match="latent_noise"):
        dataclasses.replace(tiny(), latent_noise=-0.1)


def test_equivariance_pairs_a_latent_cell_with_its_pixels() -> None:
    """On latents that are the pooled picture itself, both sides stay so under every transform."""
    picture = torch.rand(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    shapes = set()
    for seed in range(60):
        latents, target = transformed(F.avg_pool2d(picture, 4), picture, 4, torch.Generator().manual_seed(seed))
        shapes.add(latents.shape[-1])
        assert target.shape[-1] == 4 * latents.shape[-1]
        assert float((F.avg_pool2d(target, 4) - latents).abs().mean()) < 0.06
    assert shapes == set(range(2, 9))


def test_the_equivariant_share_does_not_depend_on_the_parts_of_a_batch() -> None:
    config = tiny(AutoencoderLoss(equivariant=0.3, edge_scales=1, kl=0.1), channels_last=False)
    task = AutoencoderTask(config, Shapes(8, 16))
    torch.manual_seed(0)
    module = task.build()
    whole, losses = range(8, 16), []
    for parts in ([whole], [whole[:4], whole[4:]], [whole[i : i + 1] for i in range(8)]):
        all_draws = [Draws(0, 1, numbers) for numbers in parts]
        losses.append(sum(task.loss(module, task.load(draws), draws)[0].item() for draws in all_draws) / len(parts))
    assert losses == [pytest.approx(losses[0], rel=1e-5)] * 3
    groups = task._pairs(torch.ones(8, 4, 8, 8), torch.ones(8, 3, 16, 16), Draws(0, 1, whole))
    assert [len(latents) for latents, _ in groups] == [6, 2]


def test_whitening_gives_unit_latents_and_changes_no_picture() -> None:
    torch.manual_seed(0)
    module = TrainedAutoencoder(tiny()).autoencoder.requires_grad_(False)
    module.quant_conv.bias += torch.tensor([3.0, -2.0, 0.5, 0.0, -1.0, -2.0, -3.0, -4.0])
    pictures = torch.stack([scaled(to_bytes(Shapes(8, 16).sample(i).picture)) for i in range(8)])
    before = module.encode(pictures)
    decoded = module.decode(before.mean)
    variance = before.mean.double().var(dim=(0, 2, 3), correction=0) + before.logvar.double().exp().mean(dim=(0, 2, 3))
    whiten(module, channel_statistics(module, pictures.split(3)))
    after = module.encode(pictures)
    factor = module.config.scaling_factor
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=2e-4, rtol=0.0)
    total = after.mean.var(dim=(0, 2, 3), correction=0) + after.logvar.exp().mean(dim=(0, 2, 3))
    torch.testing.assert_close(total * factor**2, torch.ones(4), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(module.decode(after.mean), decoded, rtol=1e-3, atol=1e-4)
    ratio = (after.logvar - before.logvar).exp().mean(dim=(0, 2, 3))
    torch.testing.assert_close(ratio.double(), 1.0 / (variance * factor**2), rtol=1e-3, atol=0.0)


def test_psnr_of_a_known_error() -> None:
    assert psnr(torch.full((1, 3, 4, 4), 0.02), torch.zeros(1, 3, 4, 4)) == pytest.approx(40.0, abs=1e-4)


def test_transparent_pictures_are_laid_on_white() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    assert to_bytes(picture).tolist() == [[[255, 255]], [[0, 255]], [[0, 255]]]


def test_eight_pictures_are_learned_by_heart(tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=5e-3, warmup_steps=20, schedule="cosine", betas=(0.9, 0.98))
    config = AutoencoderTraining(
        crop=8,
        first_logvar=-12.0,
        model=AutoencoderConfig(block_channels=(16, 32), layers_per_block=1, norm_groups=4, sample_size=8),
        loss=AutoencoderLoss(edges=0.0, kl=1e-6),
        run=RunConfig(steps=400, batch=8, ema_decay=0.9, validate_every=400, optimizer=optimizer),
    )
    shapes = Shapes(8, 8)
    task = AutoencoderTask(config, shapes, [shapes.sample(i).picture for i in range(8)])
    outcome = train(task, config, tmp_path)
    assert task.validate(outcome.state.ema.module, tmp_path / "sheet.png")["psnr"] > 30.0
    assert Image.open(tmp_path / "validation" / "step-00000400.png").size == (8 * 8, 2 * 8)


def test_the_whole_task_resumes_bit_for_bit_in_bfloat16(tmp_path: Path) -> None:
    loss = AutoencoderLoss(
        equivariant=0.5, learned_scale=True, adversarial=0.5, adversarial_from=1, adversarial_channels=4
    )
    options = tiny(loss, steps=4, precision="bfloat16", accumulate=2, workers=2)
    config = dataclasses.replace(options, crop=32, swap_colours=0.5)
    whole = train(AutoencoderTask(config, Shapes(8, 32)), config, tmp_path / "whole").state.snapshot()
    cancellation = Cancellation()

    class Stopping(AutoencoderTask):
        def loss(self, module, batch, draws):
            cancellation.cancel()
            return super().loss(module, batch, draws)

    stopped = train(Stopping(config, Shapes(8, 32)), config, tmp_path / "parts", cancellation=cancellation)
    assert stopped.state.step == 1
    resumed = train(AutoencoderTask(config, Shapes(8, 32)), config, tmp_path / "parts")
    assert resumed.finished
    for name, tensor in resumed.state.snapshot().items():
        assert torch.equal(tensor, whole[name]), name


def test_the_config_comes_back_from_its_file(tmp_path: Path) -> None:
    config = tiny(AutoencoderLoss(equivariant=0.5))
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert read_config(AutoencoderTraining, path) == config
    assert "# of the L1 between their gradients\nedges = 0.5" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("crop = 15", "crop"),
        ("[run]\nstepss = 3", r"run\.stepss"),
        ("[run]\nsteps = 1.5", r"run\.steps"),
        ("[run]\nprecision = 'half'", r"run\.precision"),
        ("[run]\nbatch = 3\naccumulate = 2", "accumulate"),
        ("[model]\nblock_channels = 32", r"model\.block_channels"),
        ("[loss]\nlpips = 1.0", "lpips_vgg"),
        ("run = 3", "run"),
        ("crop = ", "TOML"),
    ],
)
def test_a_wrong_config_names_its_file_and_field(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidConfig, match=named) as raised:
        read_config(AutoencoderTraining, path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_picture_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="12×12"):
        AutoencoderTask(tiny(), Shapes(8, 12)).load(Draws(0, 0, [0]))


def test_pictures_of_any_sizes_are_validated_on_their_whole_latents(tmp_path: Path) -> None:
    """The middle that has whole latents is what counts; a picture without one is refused."""
    sizes = [(17, 19), (16, 24), (33, 16)]
    pictures = [Image.linear_gradient("L").resize(size).convert("RGB") for size in sizes]
    cut = [picture.crop((0, 0, picture.width // 2 * 2, picture.height // 2 * 2)) for picture in pictures]
    scores = []
    for held_out in (pictures, cut):
        task = AutoencoderTask(tiny(), Shapes(4, 16), held_out)
        torch.manual_seed(0)
        scores.append(task.validate(task.build().eval(), tmp_path / "sheet.png")["psnr"])
    assert scores[0] == scores[1]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 32, 2 * 24)
        assert sheet.getpixel((15, 47)) == (255, 255, 255)  # below the first pair, which is 36 high
    with pytest.raises(InvalidConfig, match="leave it out"):
        AutoencoderTask(tiny(), Shapes(4, 16), [Image.new("RGB", (1, 16))])
