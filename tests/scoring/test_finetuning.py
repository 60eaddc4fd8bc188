"""One row of fine-tuning: where its head begins, what its training is by definition, and what its fits depend on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import discs
import medssl
from medssl import catalog
from medssl.augmentations.loader import loader, make_views
from medssl.evals.embed import embed
from medssl.evals.probes.linear import linear_probes
from medssl.rng import seed_from
from medssl.runs.config import Choice
from medssl.scoring import probes
from medssl.scoring.baselines import SUPERVISED, Baseline, FeatureSources
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.finetuning import BASELINES, Finetuning
from medssl.scoring.trained_rows import LabelDraw
from medssl.scoring.training import LONGER, SCRATCH, TrainingSettings, predictor, train_supervised
from medssl.store.resampled import resampled_for_encoder
from medssl.train.optim import Optim

OPTIM = Optim(lr=1e-2, weight_decay=0.1, layer_decay=0.5, encoder_lr=1e-3)


SPLITS = {"with validation": ("train", "val", "train", "train", "test"), "without": ("train", "train", "test")}


@pytest.fixture(scope="module", params=SPLITS.values(), ids=SPLITS)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("discs")
    store = discs.ingest(folder, request.param)
    return store, discs.pretrain(store, folder / "run")


def tuning(made, task="classification", steps=0, blocks=None, head="probe", optim=OPTIM):
    store, run = made
    options = SplitOptions(task=task.split()[0], device="cpu")
    sources, splits = FeatureSources.load(run, store, discs.TARGETS[task], options)
    settings = TrainingSettings(Choice.of("augment", "neutral"), steps, 12, optim, 0, "cpu")
    return Finetuning(sources, splits, settings, SCRATCH, blocks, head)


def own(finetuning, folder, draw, export=False):
    return finetuning.predict(folder, finetuning.rows([])[0], draw, export)


def all_labels(finetuning):
    return LabelDraw("all", 0, np.arange(len(finetuning.splits.train)))


@pytest.mark.parametrize("blocks", [None, 0])
@pytest.mark.parametrize("task", [task for task in discs.TARGETS if task != "ordinal"])
def test_without_an_update_it_predicts_what_the_linear_probe_does(made, tmp_path, task, blocks):
    finetuning = tuning(made, task, blocks=blocks)
    sources, splits = finetuning.sources, finetuning.splits
    subsets = probes.draw_subsets(splits, [30, "all"], 2, seed=0)
    expected = probes.linear(sources.of_run(), splits, splits.predicted, subsets=subsets, seed=0)
    for budget, drawn in subsets.items():
        for i, rows in enumerate(drawn):
            folder = tmp_path / f"{budget}{i}"
            got = own(finetuning, folder, LabelDraw(budget, i, rows))
            for p, want in zip(got, expected[budget][i].predictions, strict=True):
                shift = np.median(p - want) if task == "survival" else 0  # a hazard is relative
                assert np.ptp(want) > 0.01
                np.testing.assert_allclose(p - shift, want, atol=1e-5 * max(1, np.abs(want).max()))


def test_the_head_of_levels_begins_as_a_logistic_regression_for_each_level(made, tmp_path):
    """By its definition: the probability of a level is that of reaching it and going no further."""
    finetuning = tuning(made, "ordinal")
    store, (train, val) = made[0], (finetuning.splits.train, finetuning.splits.val)

    def reached(y):
        return np.array([[np.nan if level < j else float(level > j) for j in range(2)] for level in y]).reshape(-1, 2)

    def features(part):
        return finetuning.sources.of_run()(store, part.rows)

    (probe,) = linear_probes(
        (features(train), reached(train.y)), (features(val), reached(val.y)) if len(val) else None,
        [features(finetuning.splits.test)], task="multilabel", patient=train.patient,
    )  # fmt: skip
    up, further = probe.predictions[0].T
    (p, *_) = own(finetuning, tmp_path, all_labels(finetuning))
    np.testing.assert_allclose(p, np.stack([1 - up, up * (1 - further), up * further], 1), atol=1e-5)


def test_a_head_at_random_does_not_begin_as_the_probe(made, tmp_path):
    found = [own(tuning(made, head=head), tmp_path / head, all_labels(tuning(made)))[0] for head in ("probe", "random")]
    assert np.abs(found[0] - found[1]).max() > 0.01


class Standardise(nn.Module):
    """Features by the mean and standard deviation of those of the labelled scans."""

    def __init__(self, x):
        super().__init__()
        self.mean, self.std = torch.from_numpy(x.mean(0)), torch.from_numpy(np.sqrt(x.var(0) + 1e-5))

    def forward(self, x):
        return ((x.double() - self.mean) / self.std).float()


def by_definition(finetuning, settings, encoder, head, keep):
    """Train with plain torch and return the predictions for the test scans.

    AdamW with a warm-up over a twentieth of the steps and half a cosine, gradients clipped to 10, no weight decay of
    vectors; keep: batch normalisation in evaluation mode.
    """
    splits, optim, steps = finetuning.splits, settings.optim, settings.steps
    resampled = resampled_for_encoder(splits.train.store, finetuning.sources.encoder.input)
    recipe = catalog.build(settings.augment.spec("augment"), size=resampled.size)
    rates = {p: optim.lr for p in head.parameters()}
    for i, block in enumerate(reversed(encoder.by_depth())):
        last = optim.lr if optim.encoder_lr is None else optim.encoder_lr
        rates |= {p: last * optim.layer_decay**i for p in block}
    groups = [{"params": [p], "peak": rate, "weight_decay": 0.1 * (p.ndim > 1)} for p, rate in rates.items()]
    adam = torch.optim.AdamW(groups, lr=1)
    targets = np.zeros(len(splits.train.store), np.int64)
    targets[splits.train.rows] = splits.train.y
    # the layout of the loop, since Adam magnifies the rounding of another one
    encoder.to(memory_format=torch.channels_last).train(not keep)
    for step, raw in enumerate(loader(resampled, splits.train.rows, settings.batch, 0, steps, 0, targets=targets)):
        frac, rise = step / steps, 0.05
        factor = frac / rise if frac < rise else (1 + math.cos(math.pi * (frac - rise) / (1 - rise))) / 2
        (view,), _ = make_views(raw, recipe, 1, 0, resampled.mean, resampled.std)
        nn.functional.cross_entropy(head(encoder(view)), raw["target"]).backward()
        nn.utils.clip_grad_norm_([*encoder.parameters(), *head.parameters()], 10.0)
        for group in adam.param_groups:
            group["lr"] = group["peak"] * factor
        adam.step()
        adam.zero_grad()
    return embed(nn.Sequential(encoder, head), resampled, splits.test.rows, quiet=True)


def test_a_row_is_trained_as_its_definition_says(made, tmp_path):
    """Fine-tuned and from scratch, once and three times as long, by plain torch."""
    finetuning = tuning(made, steps=8)
    finetuning = replace(finetuning, scratch=replace(SCRATCH, weight_decay=0.1))
    rows = finetuning.rows(BASELINES)
    assert [(row.source, row.probe) for row in rows] == [
        ("run", "fine-tuned"), ("random init", "end to end"), ("random init", "end to end, 3x steps"),
    ]  # fmt: skip
    assert [row.settings.steps for row in rows] == [8, 8, 24]
    draw = all_labels(finetuning)
    for row in rows:
        (p, *_) = finetuning.predict(tmp_path / row.probe, row, draw, export=False)
        encoder, head = row.start(), nn.Linear(16, 2)
        if row.source == "run":
            splits = finetuning.splits
            probe = probes.linear(finetuning.sources.of_run(), splits, [], seed=0)["all"][0]
            x = finetuning.sources.of_run()(splits.train.store, splits.train.rows).astype(np.float64)
            standardise = Standardise(x)
            weight, bias = probe.weight_bias
            on_standard = weight * standardise.std.numpy(), bias + weight @ x.mean(0)
            with torch.no_grad():  # two scores whose difference is the logit of the second class
                for part, logit in zip((head.weight, head.bias), on_standard, strict=True):
                    part.copy_(torch.from_numpy(np.concatenate([-logit, logit]) / 2))
            head = nn.Sequential(standardise, head)
        else:
            with torch.random.fork_rng():
                torch.manual_seed(seed_from(0, 1))
                head = nn.Linear(16, 2)
        scores = by_definition(finetuning, row.settings, encoder, head, keep=row.source == "run")
        want = torch.from_numpy(scores).double().softmax(1).numpy()
        np.testing.assert_allclose(p, want, atol=1e-5, err_msg=row.probe)


def test_the_supervised_baselines_are_trained_once_and_three_times_as_long_as_the_run(made, tmp_path):
    store, run = made
    sources, splits = FeatureSources.load(run, store, "bright", SplitOptions(device="cpu"))
    config, found = sources.config, dict(sources.supervised(SUPERVISED, splits))
    assert list(found) == ["end to end", "end to end, 3x steps"]
    for times, name in ((1, "end to end"), (LONGER, "end to end, 3x steps")):
        how = TrainingSettings(config.augment, times * config.steps, config.batch, SCRATCH, config.seed, "cpu")
        loss, wanted = splits.target.kind.target_loss(splits.train.y, 2), sources.encoder.input
        method = train_supervised(tmp_path / str(times), sources.initial(), wanted, loss, splits.train, how)
        want = predictor(method, wanted, "cpu")(store, splits.test.rows)
        np.testing.assert_array_equal(found[name](store, splits.test.rows), want)
    assert [name for name, _ in sources.supervised([Baseline.SUPERVISED_LONGER], splits)] == ["end to end, 3x steps"]
    numbers = FeatureSources.load(run, store, "width", SplitOptions(device="cpu", task="regression"))[1]
    assert not dict(sources.supervised(SUPERVISED, numbers))


def test_statistics_are_kept_from_pretraining_only_with_the_head_of_the_probe(made, tmp_path):
    finetuning = tuning(made, steps=3)
    before = finetuning.sources.pretrained().state_dict()
    for head in ("probe", "random"):
        own(tuning(made, steps=3, head=head), tmp_path / head, all_labels(finetuning), export=True)
        after = medssl.load_encoder(tmp_path / head)[0].state_dict()
        assert any("running_mean" in name for name in after)
        for name, value in after.items():
            moved = not torch.equal(value, before[name])
            assert moved == (head == "random" or ("running" not in name and "tracked" not in name)), (head, name)


@pytest.mark.parametrize(
    "change",
    [
        {"head": "random"},
        {"blocks": 1},
        {"scratch": replace(SCRATCH, lr=3e-3)},
        {"optim": replace(OPTIM, encoder_lr=2e-3)},
        {"optim": replace(OPTIM, lr=2e-2)},
        {"steps": 4},
    ],
    ids=["head", "blocks", "scratch_lr", "lr", "head_lr", "steps"],
)
def test_every_setting_has_fits_of_its_own(made, change):
    first = tuning(made)
    inner = {k: v for k, v in change.items() if k in ("optim", "steps")}
    outer = {k: v for k, v in change.items() if k not in inner}
    assert first.described() == tuning(made).described()
    assert replace(first, settings=replace(first.settings, **inner), **outer).described() != first.described()
