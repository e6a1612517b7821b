"""The loop, the evaluation and resuming, against plain torch and against themselves."""

import json
import platform
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

import compiled
import devices
import exercise_1_1
import training
from checkpoint import load_checkpoint, load_model
from config import complete_config
from dataset import batches, load_datasets
from devices import uses_bfloat16
from evaluate import evaluate
from experiment import summarise
from models import build_model
from optimisation import Schedule, make_optimizer, schedule_factor
from steps import check_finite
from training import plain_step, train


class Logits(torch.nn.Module):
    """A linear layer: the loss differs from batch to batch."""

    def __init__(self, features, classes):
        super().__init__()
        self.layer = torch.nn.Linear(features, classes)

    def forward(self, images):
        return self.layer(images.flatten(1))


@pytest.mark.parametrize("batch_size", [1, 8, 37, 1024])
def test_a_ragged_last_batch_does_not_bias_the_mean(random_images, batch_size):
    model = Logits(64, 3)
    logits = model(random_images.normalise(random_images.images))
    result = evaluate(model, random_images, batch_size)
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, random_images.labels).item())
    predicted = logits.argmax(1)
    assert result["accuracy"] == (predicted == random_images.labels).double().mean().item()
    expected = confusion_matrix(random_images.labels, predicted, labels=[0, 1, 2])
    assert result["confusion"].tolist() == expected.tolist()


@pytest.mark.parametrize("training_mode", [True, False])
def test_evaluate_restores_the_mode_and_moves_no_random_state(random_images, training_mode):
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), Logits(64, 3)).train(training_mode)
    state = torch.random.get_rng_state()
    first, second = evaluate(model, random_images), evaluate(model, random_images)
    assert model.training == training_mode
    assert first["loss"] == second["loss"]
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_an_epoch_equals_a_plain_torch_loop(digits_config, optimizer):
    config = digits_config | {"optimizer": optimizer, "weight_decay": 0.01, "label_smoothing": 0.1}
    train_set, _, _ = load_datasets(config)
    ours, plain = build_model(config), build_model(config)
    mine = make_optimizer(ours, config)
    schedule = Schedule(mine, 21, config)
    _, metrics = training.train_epoch(
        plain_step(ours, mine, config), batches(train_set, config, 1), schedule
    )
    settings = {"lr": config["lr"], "weight_decay": 0.01}
    reference = {
        "adam": lambda p: torch.optim.Adam(p, **settings),
        "adamw": lambda p: torch.optim.AdamW(p, **settings),
        "sgd": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, **settings),
    }[optimizer](plain.parameters())
    total = 0.0
    for images, labels in batches(train_set, config, 1):
        loss = F.cross_entropy(plain(images), labels, label_smoothing=0.1)
        reference.zero_grad()
        loss.backward()
        reference.step()
        total += loss.item() * len(labels)
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert metrics["train/loss"] == pytest.approx(total / len(train_set), rel=1e-5)
    hits = metrics["train/accuracy"] * len(train_set)
    assert hits == pytest.approx(round(hits), abs=1e-9)  # a whole number of images


def test_the_loss_of_a_bfloat16_step_is_that_of_its_logits_however_sure_they_are(digits_config):
    config = complete_config(digits_config | {"precision": "bfloat16"})
    images, labels = torch.randn(64, 1, 8, 8), torch.randint(0, 10, (64,))
    model = build_model(config)
    last = model.layers[-1]
    with torch.no_grad():
        last.bias.zero_()[0] += 8.0  # sure of class 0
        last.weight.mul_(0.1)
    labels.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images).float()
    expected = F.cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(expected, last.bias)

    class Kept:  # an optimizer that leaves gradients and weights
        def step(self):
            self.gradient = last.bias.grad.clone()

        def zero_grad(self):
            pass

    kept = Kept()
    loss, _ = plain_step(model, kept, config)(images, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(kept.gradient, gradient, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("schedule", "warmup_epochs"), [("one_cycle", 0.0), ("cosine", 1.0), ("constant", 2.0)]
)
def test_a_training_takes_the_learning_rates_of_torchs_schedulers(
    digits_config, schedule, warmup_epochs
):
    config = digits_config | {"schedule": schedule, "warmup_epochs": warmup_epochs, "epochs": 3}
    taken = []
    hook = register_optimizer_step_pre_hook(lambda one, *_: taken.append(one.param_groups[0]["lr"]))
    history = run(config)[1]["history"]
    hook.remove()
    steps, warmup = 21, int(warmup_epochs * 21)  # 21 steps are an epoch
    lr_scheduler, lr = torch.optim.lr_scheduler, config["lr"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    if schedule == "one_cycle":
        theirs = lr_scheduler.OneCycleLR(optimizer, lr, total_steps=3 * steps, cycle_momentum=False)
    else:
        climb = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
        fall = lr_scheduler.ConstantLR(optimizer, factor=1.0)
        if schedule == "cosine":
            fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=3 * steps - warmup)
        theirs = lr_scheduler.SequentialLR(optimizer, [climb, fall], milestones=[warmup])
    expected = []
    for _ in range(3 * steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert taken == pytest.approx(expected, rel=1e-6)
    assert [row["train/lr"] for row in history] == taken[steps - 1 :: steps]


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_trains_in_float32_unless_told(monkeypatch, native):
    def supported(including_emulation=True):
        return native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    for precision, expected in (("auto", native), ("bfloat16", True), ("float32", False)):
        assert uses_bfloat16({"precision": precision}, torch.device("cuda")) == expected


def test_warm_up_climbs_to_the_learning_rate():
    factors = [schedule_factor("constant", step, 100, warmup=4) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def run(config):
    """Train from scratch or resumed; (model, last checkpoint, accuracies, losses)."""
    train_set, val_set, _ = load_datasets(config)
    model = build_model(complete_config(config))
    lists = train(model, train_set, val_set, config)
    folder = config["run_dir"] if config["resume"] == "none" else config["resume"]
    return model, load_checkpoint(Path(folder) / "checkpoints" / "last.pt"), *lists


def interrupt_in_epoch(monkeypatch, epoch):
    """Make training stop as Ctrl-C does, in the middle of an epoch."""
    deal = training.batches

    def interrupted(train_set, config, number, device):
        for count, batch in enumerate(deal(train_set, config, number, device)):
            if number == epoch and count == 5:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(training, "batches", interrupted)


def assert_same(state, other):
    """Two states equal bit for bit, all but the speed."""
    flat, other_flat = (torch.utils._pytree.tree_flatten(s)[0] for s in (state, other))
    assert len(flat) == len(other_flat)
    for a, b in zip(flat, other_flat, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def comparable(state):
    history = [
        {key: value for key, value in row.items() if "per_second" not in key}
        for row in state["history"]
    ]
    return [state[key] for key in ("epoch", "model", "optimizer", "scheduler")] + [history]


def stop_and_resume(config, monkeypatch, tmp_path):
    stopped = config | {"run_dir": str(tmp_path / "stopped")}
    with monkeypatch.context() as patch:
        interrupt_in_epoch(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(stopped)
    return run(stopped | {"resume": stopped["run_dir"]})


@pytest.mark.parametrize(("optimizer", "keep"), [("adamw", "best"), ("muon", "last")])
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(
    everything_config, monkeypatch, tmp_path, optimizer, keep
):
    model = everything_config["model"] | {"whiten": optimizer == "muon"}
    config = everything_config | {"optimizer": optimizer, "model": model, "keep": keep}
    kept, straight, *lists = run(config)
    resumed_kept, resumed, *resumed_lists = stop_and_resume(config, monkeypatch, tmp_path)
    assert_same(comparable(straight), comparable(resumed))
    assert_same(kept.state_dict(), resumed_kept.state_dict())
    assert lists == resumed_lists


def test_the_comparison_sees_a_difference_where_randomness_does_not_follow_the_epoch(
    everything_config, monkeypatch, tmp_path
):
    _, straight, *_ = run(everything_config)
    torch.manual_seed(99)
    monkeypatch.setattr(training.torch, "manual_seed", lambda seed: None)
    _, resumed, *_ = stop_and_resume(everything_config, monkeypatch, tmp_path)
    with pytest.raises(AssertionError):
        assert_same(comparable(straight), comparable(resumed))


@pytest.mark.parametrize("lr", [1e-3, 1e-7])  # with the second all accuracies are equal
def test_best_is_the_highest_validation_accuracy_and_of_equal_ones_the_lowest_loss(
    digits_config, lr
):
    config = digits_config | {"epochs": 5, "lr": lr}
    model, _, accuracies, losses = run(config)
    best = load_checkpoint(Path(config["run_dir"]) / "checkpoints" / "best.pt")
    assert len(accuracies) == len(losses) == 5
    highest = [loss for loss, a in zip(losses, accuracies, strict=True) if a == max(accuracies)]
    assert len(set(highest)) == (5 if lr == 1e-7 else 1)
    assert best["epoch"] == losses.index(min(highest)) + 1
    row = {"accuracy": max(accuracies), "loss": min(highest), "best_epoch": best["epoch"]}
    assert summarise(model, accuracies, losses, {})["val"] == row
    assert_same(best["model"], model.state_dict())
    assert not model.training
    assert evaluate(model, load_datasets(config)[1])["accuracy"] == max(accuracies)


def test_the_last_epoch_is_kept_where_that_is_asked(digits_config, monkeypatch):
    falling = iter((0.9, 0.8, 0.7))
    measured = {"val/loss": 1.0}
    monkeypatch.setattr(
        training, "as_metrics", lambda *_: measured | {"val/accuracy": next(falling)}
    )
    results = exercise_1_1.main(digits_config | {"epochs": 3, "keep": "last"})
    assert (results["val"]["accuracy"], results["val"]["best_epoch"]) == (0.7, 3)
    folder = Path(digits_config["run_dir"], "checkpoints")
    best, last = (load_checkpoint(folder / name) for name in ("best.pt", "last.pt"))
    assert best["epoch"] == 3
    assert_same(best["model"], last["model"])
    model, test_set = load_model(digits_config["run_dir"])[0], load_datasets(digits_config)[2]
    assert results["test"]["loss"] == evaluate(model, test_set)["loss"]


def test_more_epochs_of_a_rate_that_had_fallen_are_said_to_be_another_run(digits_config, capsys):
    for schedule in ("constant", "cosine"):
        config = digits_config | {"schedule": schedule, "run_dir": schedule}
        run(config)
        capsys.readouterr()
        run(config | {"resume": schedule, "epochs": 2})
        said = "the learning rate had fallen for 1 epochs" in capsys.readouterr().err
        assert said == (schedule == "cosine")


def test_a_tensorboard_folder_that_was_deleted_comes_back(digits_config, capsys):
    run(digits_config)
    folder = Path(digits_config["run_dir"])
    shutil.rmtree(folder / "tensorboard")
    capsys.readouterr()
    run(digits_config | {"resume": str(folder), "epochs": 2})
    assert list((folder / "tensorboard").iterdir())
    assert "could not be written" not in capsys.readouterr().err


def test_a_changed_config_is_refused_by_name_but_more_epochs_are_not(digits_config):
    run(digits_config)
    resumed = digits_config | {"resume": digits_config["run_dir"]}
    with pytest.raises(ValueError, match=r"lr 0.001 -> 0.1"):
        run(resumed | {"lr": 0.1})
    assert run(resumed | {"epochs": 2})[1]["epoch"] == 2


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """One folder of compiled steps for all tests that ask for the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "CACHE", tmp_path_factory.mktemp("compiled"))
        yield


SKIPS = {"kind": "skip_mlp", "layers": [64, 16, 10], "dropout": 0.5}


@pytest.mark.parametrize(
    ("optimizer", "compile"),
    [("adam", "off"), ("adamw", "off"), ("sgd", "off")]
    + [pytest.param("adamw", "on", marks=pytest.mark.slow)],
)
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(
    digits_config, monkeypatch, compiled_once, optimizer, compile
):
    config = digits_config | {"optimizer": optimizer, "compile": compile, "epochs": 3}
    config |= {"model": SKIPS, "weight_decay": 0.1, "warmup_epochs": 2.0}
    deal, reached = training.batches, []

    def poisoned(train_set, config, number, device):
        for count, (images, labels) in enumerate(deal(train_set, config, number, device)):
            if (number, count) == (2, 6):
                reached.extend(parameter.clone() for parameter in model.parameters())
                images = images * float("nan")
            yield images, labels

    monkeypatch.setattr(training, "batches", poisoned)
    train_set, val_set, _ = load_datasets(config)
    model = build_model(config)
    lr = 28 / 43 * 0.001  # 21 steps an epoch, 42 of them climb
    with pytest.raises(ValueError, match=f"nan in epoch 2, step 7, at learning rate {lr:g}"):
        train(model, train_set, val_set, config)
    assert json.loads(Path(config["run_dir"], "config.json").read_text())["compile"] == compile
    for parameter, before in zip(model.parameters(), reached, strict=True):
        assert torch.equal(parameter, before)
    for name in ("last.pt", "best.pt"):
        state = load_checkpoint(Path(config["run_dir"]) / "checkpoints" / name)
        assert state["epoch"] == 1
        assert all(weights.isfinite().all() for weights in state["model"].values())


def test_weights_that_are_not_finite_are_told_apart_from_a_loss_that_is_not(digits_config):
    config = complete_config(digits_config)
    model = build_model(config)
    schedule = Schedule(make_optimizer(model, config), 2, config)
    check_finite(torch.ones(2), model, 3, schedule)
    next(model.parameters()).data[0] = torch.inf
    with pytest.raises(ValueError, match=r"^weights are no longer finite after epoch 3"):
        check_finite(torch.ones(2), model, 3, schedule)


@pytest.mark.parametrize(
    ("outputs", "changes", "told"),
    [
        (5, {}, "by 5 numbers, digits has 10 classes"),
        (10, {"seeds": [0, 1]}, r"seeds \[0, 1\]: one network is trained here"),
        (10, {"labels": 1}, "labels from 1 to 10: 10 classes are numbered from 0 to 9"),
        (10, {"held out": 0}, "no image is held out for validation"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    digits_config, outputs, changes, told
):
    train_set, val_set, _ = load_datasets(digits_config)
    train_set = replace(train_set, labels=train_set.labels + changes.get("labels", 0))
    val_set = val_set.subset(slice(changes.get("held out", None)))
    config = digits_config | {"seeds": changes.get("seeds", [])}
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, outputs))
    with pytest.raises(ValueError, match=told):
        train(network, train_set, val_set, config)
    assert not Path(digits_config["run_dir"]).exists()


def test_a_learning_rate_far_too_high_is_named(digits_config):
    with pytest.raises(ValueError, match=r"epoch \d+, step \d+, at learning rate 1e\+30"):
        run(digits_config | {"lr": 1e30, "optimizer": "sgd"})
    state = load_checkpoint(Path(digits_config["run_dir"]) / "checkpoints" / "last.pt")
    assert state["epoch"] == 0
    assert all(weights.isfinite().all() for weights in state["model"].values())


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_compiled_step_is_the_plain_step_within_rounding(
    digits_config, compiled_once, tmp_path, optimizer
):
    config = digits_config | {"model": SKIPS, "weight_decay": 0.1, "optimizer": optimizer}
    _, plain, *_ = run(config | {"compile": "off"})
    _, fast, *_ = run(config | {"compile": "on", "run_dir": str(tmp_path / "fast")})
    assert json.loads((tmp_path / "fast" / "config.json").read_text())["compile"] == "on"
    for name, weights in plain["model"].items():
        torch.testing.assert_close(weights, fast["model"][name], atol=1e-5, rtol=1e-4)
    assert not all(torch.equal(w, fast["model"][n]) for n, w in plain["model"].items())


@pytest.mark.slow
def test_a_compiled_step_that_is_damaged_is_compiled_anew(
    digits_config, compiled_once, tmp_path, capsys
):
    config = digits_config | {"compile": "on", "optimizer": "adamw"}
    run(config | {"run_dir": str(tmp_path / "first")})
    for path in compiled.CACHE.glob("step-*.pt2"):
        path.write_bytes(path.read_bytes()[:1000])
    capsys.readouterr()
    run(config)
    assert capsys.readouterr().err.startswith("compiling the training step, once")
    assert json.loads(Path(config["run_dir"], "config.json").read_text())["compile"] == "on"


def test_a_share_of_one_image_is_refused_where_batchnorm_sees_it_alone(digits_config, monkeypatch):
    monkeypatch.setattr(training, "world", lambda: 8)
    model = build_model(digits_config | {"model": {"kind": "cnn", "layers": 6 * [4]}})
    train_set = load_datasets(digits_config)[0].subset(slice(64 + 14))  # 14 images over 8 processes
    training.check_last_batch(model, train_set, digits_config, torch.device("cuda"))
    with pytest.raises(ValueError, match="leaves a share of one"):
        training.check_last_batch(model, train_set, digits_config, torch.device("cpu"))


@pytest.mark.parametrize(("kind", "lowered"), [("cnn", 0), ("mlp", 1)])
def test_only_the_small_networks_give_up_a_thread(digits_config, monkeypatch, kind, lowered):
    model = {"cnn": {"kind": "cnn", "layers": [4]}, "mlp": digits_config["model"]}[kind]
    config = digits_config | {"model": model}
    train_set, val_set, _ = load_datasets(config)
    few = (train_set.subset(slice(64)), val_set.subset(slice(32)))
    asked = []
    monkeypatch.setattr(training.torch, "set_num_threads", asked.append)
    accuracies, _ = train(build_model(complete_config(config)), *few, config)
    assert len(accuracies) == 1
    assert len(asked) == lowered + 1  # the last gives back what was there


def test_a_gpu_that_is_named_is_the_one_that_all_is_made_on(monkeypatch):
    made_on = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_on.append)
    assert devices.choose_device("cuda:1") == torch.device("cuda:1")
    devices.choose_device("cpu")
    assert made_on == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("instructions", "kind", "precision", "told"),
    [
        ({"avx2": True, "avx512_bf16": False}, "mlp", "bfloat16", "float32 is faster"),
        ({"avx2": True, "avx512_bf16": True}, "mlp", "bfloat16", None),
        ({"neon": True, "bf16": True}, "mlp", "bfloat16", None),
        ({"avx2": True}, "cnn", "auto", None),
        ({"avx2": True, "avx512_bf16": True}, "cnn", "auto", "bfloat16 may be faster"),
        ({"avx2": True, "avx512_bf16": True}, "cnn", "float32", None),
        ({"avx2": True, "avx512_bf16": True}, "mlp", "auto", None),
        ({"avx2": True, "avx512_bf16": True}, "large mlp", "auto", "bfloat16 may be faster"),
        ({"avx2": True}, "large mlp", "auto", None),
    ],
)
def test_who_trains_in_the_slower_precision_is_told(
    digits_config, monkeypatch, capsys, instructions, kind, precision, told
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    config = digits_config | {"precision": precision}
    if kind == "cnn":
        config |= {"model": {"kind": "cnn", "layers": [4]}}
    elif kind == "large mlp":
        config |= {"model": {"kind": "mlp", "layers": [64, 1000, 1000, 10]}}
    config = complete_config(config)
    train_set, val_set, _ = load_datasets(config)
    few = (train_set.subset(slice(64)), val_set.subset(slice(32)))
    train(build_model(config), *few, config)
    said = capsys.readouterr().out
    assert f"--precision {told}" in said if told else "--precision" not in said


def test_several_large_mlps_are_told_of_bfloat16_once(digits_config, monkeypatch, capsys):
    known = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    large = {"model": {"kind": "mlp", "layers": [64, 1000, 1000, 10]}, "seeds": [0, 1]}
    exercise_1_1.main(exercise_1_1.config | digits_config | large)
    assert capsys.readouterr().out.count("--precision bfloat16 may be faster") == 1


def own_memory():
    """Bytes of this process that no file stands behind."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has mallopt")
def test_what_a_cnn_frees_is_not_fetched_from_the_system_again_and_goes_back_after_it():
    import resource

    def page_faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(2**23)  # 32 MB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    given_back = page_faults()
    with devices.freed_memory_kept():
        with devices.freed_memory_kept():  # evaluation in training
            pass
        assert page_faults() < given_back / 5
        kept = own_memory()
    assert own_memory() < kept - 24 * 2**20  # of the 32 MB, whatever else was free
