import numpy as np
import pytest
import torch

from tempbalance.errors import NotFoundError, StudyError
from tempbalance.study import Configuration, load_task


@pytest.fixture
def vision():
    import vision

    return vision


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten classes that differ in brightness, 12 and 3 images each."""
    tmp_path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 12), ("test", 3)):
        labels = rng.permutation(np.repeat(np.arange(10), count))
        noise = rng.integers(0, 25, (10 * count, 32, 32, 3))
        arrays |= {f"{part}_images": (noise + 22 * labels[:, None, None, None]).astype(np.uint8)}
        arrays |= {f"{part}_labels": labels}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    return str(tmp_path)


HOOKS = "data_diet:keep=0.5,passes=0+sam+ps_kd"
SMALL = {"examples": 20, "epochs": 2, "batch_size": 10, "size": 8}


@pytest.mark.parametrize("network", ["resnet20", "vgg"])
def test_the_vision_task_trains_and_neutral_methods_equal_plain(vision, experiments, data, network):
    task = load_task(experiments / "vision.py", {**SMALL, "data": data, "network": network})
    names = (
        "plain",
        "tempbalance",
        "tempbalance:low=1,high=1",
        "snr:strength=0.1+tempbalance",
        "snr:strength=0",
        HOOKS,
    )
    runs = {name: task.run(Configuration(name, 0.1), 0) for name in names}
    assert [run.error for run in runs.values()] == [""] * len(names)
    plain = runs["plain"].metrics
    assert {"validation", "test", "train", "imbalance", "mean_alpha"} < set(plain)
    assert plain == runs["tempbalance:low=1,high=1"].metrics == runs["snr:strength=0"].metrics
    different = [plain, *(runs[name].metrics for name in ("tempbalance", "snr:strength=0.1+tempbalance", HOOKS))]
    assert len({metrics["mean_alpha"] for metrics in different}) == 4
    assert runs["tempbalance"].balance["refreshes"] == 2


def test_a_seed_trains_on_and_validates_on_other_images_of_all_classes(vision, data):
    everything = vision.load(data, 10, "train", 8)
    few, held_out = vision.draw(everything, 30, seed=0)
    again, _ = vision.draw(everything, 30, seed=0)
    others, _ = vision.draw(everything, 30, seed=1)
    assert few.labels.bincount().tolist() == [3] * 10
    assert held_out.labels.bincount().tolist() == [9] * 10
    together = torch.cat([few.images, held_out.images]).flatten(1)
    assert len(together.unique(dim=0)) == 120
    assert torch.equal(few.images, again.images)
    assert not torch.equal(few.images, others.images)


def test_augmentation_shifts_images_and_flips_half_of_them(vision):
    rng = torch.Generator().manual_seed(0)
    images = torch.arange(1.0, 17).expand(400, 2, 16, 16)  # columns count up
    moved = vision.augmented(images, rng)
    assert moved.shape == images.shape
    flipped = 0
    for image in moved:
        row = image[0, 8]
        steps = row[2:-2].diff()  # no zeros there: at most two columns come in
        assert abs(float(steps[0])) == 1 and len(steps.unique()) == 1
        flipped += float(steps[0]) < 0
        assert torch.equal(image[0], image[1])
    assert 150 < flipped < 250
    assert 1 < len({int((image[0, 8] == 0).sum()) for image in moved})
    assert 1 < len({int((image[0, :, 8] == 0).sum()) for image in moved})


def test_a_published_resnet20_has_its_accuracy_on_our_images(vision, data_file):
    from safetensors.torch import load_file

    model = vision.ResNet20(10)
    model.load_state_dict(load_file(data_file("weights/resnet20_cifar10.safetensors")), strict=False)
    test = vision.load(str(data_file("images/cifar10.npz").parent), 10, "test", 32).at(torch.arange(300))
    assert vision.accuracy(model, test) > 0.88  # 91.73 % of all 10,000, with the normalisation it was trained with


def test_a_diverged_vision_network_has_no_accuracy(vision, data):
    model = vision.vgg(10)
    torch.nn.init.constant_(model[-1].weight, float("nan"))
    assert np.isnan(vision.accuracy(model, vision.load(data, 10, "test", 8)))


def test_missing_cifar_files_are_named(vision, experiments, tmp_path):
    run = load_task(experiments / "vision.py", {"data": str(tmp_path), "classes": 100}).run(
        Configuration("plain", 0.1), 0
    )
    assert run.status == "failed"
    assert f"there is no {tmp_path}/cifar100.npz: make it from CIFAR-100" in run.error
    with pytest.raises(NotFoundError):
        vision.load(str(tmp_path), 10, "test", 16)


@pytest.mark.parametrize("examples", [0, 15, 120])
def test_examples_that_cannot_be_drawn_are_refused(vision, data, examples):
    with pytest.raises(StudyError, match=f"a multiple of 10, .* below 120, got {examples}"):
        vision.draw(vision.load(data, 10, "train", 8), examples, seed=0)


def test_an_image_size_that_does_not_divide_32_is_refused(vision, data):
    with pytest.raises(StudyError, match="size must divide 32, got 20"):
        vision.load(data, 10, "train", 20)


def test_an_unknown_network_is_refused(vision, experiments, data):
    run = load_task(experiments / "vision.py", {"data": data, "network": "resnet18"}).run(
        Configuration("plain", 0.1), 0
    )
    assert "network must be one of resnet20, vgg, vit, got 'resnet18'" in run.error
