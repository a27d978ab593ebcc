"""Reading images: every layout, every range, and files that mean harm."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from goodnet.classifier import Classifier, Preprocess
from goodnet.errors import GoodnetError
from goodnet.formats.network import Network
from goodnet.images import Images, check_images, load_images, read_pictures

SHARED = Path(__file__).parents[1].parent / "shared"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 3, 6, 5), dtype=np.uint8)
LABELS = np.arange(12) % 4


def refused(code: str, *args: object, **kwargs: object) -> GoodnetError:
    with pytest.raises(GoodnetError) as caught:
        load_images(*args, **kwargs)
    assert caught.value.code == code, caught.value
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


def write_h5(path: Path, **arrays: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)
    return path


def save_picture(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


# --- HDF5 and npz -----------------------------------------------------------------------------


def test_h5_as_csaw_writes_it(tmp_path: Path):
    path = write_h5(tmp_path / "x.h5", data=PIXELS, label=LABELS, true_label=LABELS - 1)
    images = load_images(path)
    assert images.pixels.dtype == torch.uint8
    assert np.array_equal(images.pixels.numpy(), PIXELS)
    assert images.labels.tolist() == LABELS.tolist()
    assert images.true_labels is not None
    assert images.true_labels.tolist() == (LABELS - 1).tolist()
    assert images.path == str(path)
    assert images.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_images(str(path)).sha256 == images.sha256


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_channels_last_and_label_shapes(tmp_path: Path, suffix: str):
    last = PIXELS.transpose(0, 2, 3, 1)
    for labels in (
        LABELS.astype(np.float32),
        LABELS[:, None].astype(np.float64),
        np.eye(4)[LABELS],
        LABELS.astype(np.uint8),
    ):
        path = tmp_path / f"x{suffix}"
        if suffix == ".h5":
            write_h5(path, data=last, label=labels)
        else:
            np.savez_compressed(path, images=last, labels=labels)
        images = load_images(path)
        assert np.array_equal(images.pixels.numpy(), PIXELS)
        assert images.labels.dtype == torch.int64
        assert images.labels.tolist() == LABELS.tolist()


def test_ambiguous_layout_is_channels_first():
    images = load_images(np.zeros((4, 3, 7, 3), np.uint8), [0, 1, 2, 3])
    assert images.shape == (3, 7, 3)


def test_npz_names(tmp_path: Path):
    gray = PIXELS[:, 0]
    np.savez(tmp_path / "a.npz", images=gray, labels=LABELS, x=PIXELS, y=LABELS)
    assert load_images(tmp_path / "a.npz").shape == (1, 6, 5)
    for x, y in [("x", "y"), ("data", "label"), ("x_test", "y_test")]:
        np.savez(tmp_path / "b.npz", **{x: PIXELS, y: LABELS})
        assert load_images(tmp_path / "b.npz").shape == (3, 6, 5)
    np.savez(tmp_path / "c.npz", images=gray, test_images=PIXELS, test_labels=LABELS)
    assert load_images(tmp_path / "c.npz").shape == (3, 6, 5)
    np.savez(tmp_path / "d.npz", images=gray, labels=LABELS, classes=np.array(["a", "b", "c", "d"]))
    assert load_images(tmp_path / "d.npz").class_names == ("a", "b", "c", "d")
    np.savez(tmp_path / "e.npz", pictures=gray, labels=LABELS)
    assert "pictures" in refused("D004", tmp_path / "e.npz").message


def test_content_counts_more_than_the_suffix(tmp_path: Path):
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=LABELS)
    (tmp_path / "x.npz").rename(tmp_path / "x.h5")
    assert len(load_images(tmp_path / "x.h5")) == 12


@pytest.mark.parametrize(
    ("values", "expected", "dtype"),
    [
        (PIXELS.astype(np.int64), PIXELS, torch.uint8),
        (PIXELS.astype(np.float64), PIXELS, torch.uint8),
        (PIXELS / 255, PIXELS / 255, torch.float32),
        (PIXELS / 255 + 1e-6, np.minimum(PIXELS / 255 + 1e-6, 1), torch.float32),
        (PIXELS * 0.999, PIXELS * 0.999 / 255, torch.float32),
        (PIXELS > 127, (PIXELS > 127) * 255, torch.uint8),
        (PIXELS // 128, PIXELS // 128 * 255, torch.uint8),
        ((PIXELS / 255).astype(np.float16), PIXELS / 255, torch.float32),
    ],
)
def test_ranges(values: np.ndarray, expected: np.ndarray, dtype: torch.dtype):
    images = load_images(values, LABELS)
    assert images.pixels.dtype == dtype
    assert np.allclose(images.pixels.numpy(), expected, atol=5e-4 if dtype.is_floating_point else 0)
    floats = images.floats()
    assert 0 <= float(floats.min()) <= float(floats.max()) <= 1


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda x: x / 127.5 - 1, "-1 to"),
        (lambda x: x * 257.0, "65535"),
        (lambda x: x.astype(np.int32) - 1, "-1 to"),
        (lambda x: np.where(x == x.max(), np.nan, x / 255), "NaN"),
        (lambda x: np.where(x == x.max(), np.inf, x / 255), "infinite"),
    ],
)
def test_pixels_out_of_range(change, found: str):
    assert found in refused("D006", change(PIXELS), LABELS).message


@pytest.mark.parametrize(
    ("pixels", "labels", "code"),
    [
        (PIXELS, None, "D004"),
        (PIXELS, LABELS[:-1], "D012"),
        (PIXELS, LABELS + 0.5, "D007"),
        (PIXELS, LABELS - 1, "D007"),
        (PIXELS, np.full(12, np.nan), "D007"),
        (PIXELS, np.full((12, 4), 0.25), "D007"),
        (PIXELS, ["cat"] * 12, "D004"),
        (PIXELS[0, 0], LABELS, "D005"),
        (np.zeros((12, 2, 6, 5)), LABELS, "D005"),
        (np.zeros((12, 4, 6, 6)), LABELS, "D005"),
        (np.zeros((12, 3, 0, 5)), LABELS, "D005"),
        (np.array(["a"] * 12), LABELS, "D002"),
        ({"images": PIXELS}, LABELS, "D002"),
        (7.0, LABELS, "D002"),
        ("somewhere.npz", LABELS, "R003"),
    ],
)
def test_arrays_refused(pixels: object, labels: object, code: str):
    refused(code, pixels, labels)


def test_arrays_and_tensors_agree_and_are_copied():
    array = PIXELS.copy()
    images = load_images(array, LABELS)
    same = load_images(torch.from_numpy(PIXELS).permute(0, 2, 3, 1), torch.from_numpy(LABELS))
    assert torch.equal(images.pixels, same.pixels)
    assert images.sha256 == same.sha256 != load_images(array, LABELS[::-1]).sha256
    array[:] = 0
    assert np.array_equal(images.pixels.numpy(), PIXELS)
    assert load_images(images) is images
    half = load_images(torch.from_numpy(PIXELS / 255).bfloat16(), LABELS)
    assert half.pixels.dtype == torch.float32


# --- hostile and damaged files ----------------------------------------------------------------


def test_links_are_not_followed(tmp_path: Path):
    secret = write_h5(tmp_path / "secret.h5", data=PIXELS, label=LABELS)
    for link in (h5py.ExternalLink("secret.h5", "/data"), h5py.SoftLink("/other")):
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["other"] = PIXELS
            file["label"] = LABELS
            file["data"] = link
        assert "link" in refused("D002", tmp_path / "x.h5").message
    layout = h5py.VirtualLayout(PIXELS.shape, "u1")
    layout[:] = h5py.VirtualSource(secret, "data", PIXELS.shape)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["label"] = LABELS
        file.create_virtual_dataset("data", layout)
    refused("D002", tmp_path / "v.h5")
    (tmp_path / "raw").write_bytes(PIXELS.tobytes())
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["label"] = LABELS
        file.create_dataset(
            "data", PIXELS.shape, "u1", external=[(str(tmp_path / "raw"), 0, PIXELS.size)]
        )
    refused("D002", tmp_path / "e.h5")


@pytest.mark.parametrize("options", [{}, {"chunks": (1, 3, 1000, 1000)}, {"compression": "gzip"}])
def test_h5_with_an_absurd_declared_size(tmp_path: Path, options: dict[str, object]):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["label"] = LABELS
        file.create_dataset("data", (10**6, 3, 1000, 1000), "u1", **options)
    assert "bytes" in refused("D003", tmp_path / "x.h5").message


def test_h5_compression_bomb(tmp_path: Path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["label"] = LABELS
        data = file.create_dataset(
            "data", (12, 3, 4000, 4000), "u1", chunks=(1, 3, 4000, 4000), compression=9
        )
        for i in range(12):
            data.id.write_direct_chunk((i, 0, 0, 0), b"x" * 100)
    assert "declares" in refused("D003", tmp_path / "x.h5").message


def test_h5_contents_that_are_not_images(tmp_path: Path):
    with h5py.File(tmp_path / "g.h5", "w") as file:
        file.create_group("data")
        file["label"] = LABELS
    refused("D004", tmp_path / "g.h5")
    refused("D002", write_h5(tmp_path / "s.h5", data=["a", "b"], label=[0, 1]))
    refused("D004", write_h5(tmp_path / "n.h5", data=PIXELS))
    model = write_h5(tmp_path / "m.h5", model_weights=[1])
    assert "MODEL" in refused("D004", model).hint


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_files_cut_short_at_any_place(tmp_path: Path, suffix: str):
    path = tmp_path / f"x{suffix}"
    if suffix == ".h5":
        write_h5(path, data=PIXELS, label=LABELS)
    else:
        np.savez(path, images=PIXELS, labels=LABELS)
    content = path.read_bytes()
    for length in range(0, len(content) - 1, max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        refused("D003", path)


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, suffix: str):
    path = tmp_path / f"x{suffix}"
    if suffix == ".h5":
        write_h5(path, data=PIXELS, label=LABELS)
    else:
        np.savez_compressed(path, images=PIXELS, labels=LABELS)
    content = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            images = load_images(path)
        except GoodnetError as error:
            assert error.code[0] == "D"  # noqa: PT017
        else:
            assert len(images) == len(images.labels)


@pytest.mark.parametrize("name", ["x.h5", "x.npz"])
def test_random_and_empty_files(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(b"")
    refused("D003", path)
    path.write_bytes(RNG.bytes(5000))
    refused("D003", path)


def test_npz_objects_are_not_unpickled(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    np.savez(tmp_path / "x.npz", images=np.array([Bomb()] * 12, object), labels=LABELS)
    assert "objects" in refused("D002", tmp_path / "x.npz").message
    assert not (tmp_path / "exploded").exists()


def test_npz_with_an_absurd_declared_size(tmp_path: Path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 3, 10**4, 10**4)}
    )
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"\0" * 100)
    labels = io.BytesIO()
    np.save(labels, LABELS)
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("labels.npy", labels.getvalue())
    assert "needs" in refused("D003", tmp_path / "x.npz").message


def test_other_files(tmp_path: Path):
    assert "nothing at" in refused("D001", tmp_path / "none.h5").message
    np.save(tmp_path / "x.npy", PIXELS)
    assert "savez" in refused("D002", tmp_path / "x.npy").hint
    (tmp_path / "x.csv").write_text("1,2,3")
    refused("D002", tmp_path / "x.csv")
    refused("D002", save_picture(tmp_path / "x.png", PIXELS[0, 0]))
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.writestr("cat/1.png", b"")
    assert "unpack" in refused("D002", tmp_path / "pictures.zip").hint
    os.mkfifo(tmp_path / "pipe")
    refused("D002", tmp_path / "pipe")


# --- folders of pictures ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for label, name in enumerate(["cat", "dog", "owl"]):
        for i in range(2):
            array = np.full((4, 6, 3), 40 * label + i, np.uint8)
            save_picture(tmp_path / "set" / name / f"{i}.png", array)
    return tmp_path / "set"


def test_class_folders(folder: Path):
    (folder / ".hidden").mkdir()
    (folder / "cat" / ".DS_Store").write_bytes(b"x")
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "bat").mkdir()
    images = load_images(folder)
    # An empty folder is a class all the same: the model was trained with it.
    assert images.class_names == ("bat", "cat", "dog", "owl")
    assert images.labels.tolist() == [1, 1, 2, 2, 3, 3]
    assert images.shape == (3, 4, 6)
    assert images.pixels[:, 0, 0, 0].tolist() == [0, 1, 40, 41, 80, 81]
    assert images.pixels.is_contiguous()


def test_folders_named_by_numbers_are_the_labels(tmp_path: Path):
    for name in ("00007", "10", "2"):
        save_picture(tmp_path / name / "a.png", PIXELS[0, 0])
    images = load_images(tmp_path)
    assert sorted(images.labels.tolist()) == [2, 7, 10]
    assert images.class_names is None
    save_picture(tmp_path / "02" / "a.png", PIXELS[0, 0])
    assert "class 2" in refused("D002", tmp_path).message


def test_folder_hash_knows_names_and_contents(folder: Path):
    first = load_images(folder).sha256
    assert len(first) == 64
    assert load_images(folder).sha256 == first
    (folder / "cat" / "0.png").rename(folder / "cat" / "9.png")
    renamed = load_images(folder).sha256
    save_picture(folder / "cat" / "9.png", np.zeros((4, 6, 3), np.uint8) + 9)
    assert len({first, renamed, load_images(folder).sha256}) == 3


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "webp", "ppm", "tiff", "PNG"])
def test_picture_formats(tmp_path: Path, ending: str):
    array = np.zeros((8, 8, 3), np.uint8)
    array[:] = (200, 100, 20)
    save_picture(tmp_path / "a" / f"x.{ending}", array)
    pixel = load_images(tmp_path).pixels[0, :, 4, 4].int()
    assert (pixel - torch.tensor([200, 100, 20])).abs().max() <= 6


def test_gray_palette_alpha_and_deep_pictures(tmp_path: Path):
    gray = np.full((4, 4), 77, np.uint8)
    save_picture(tmp_path / "a" / "gray.png", gray)
    save_picture(tmp_path / "a" / "deep.png", np.full((4, 4), 77 * 257, np.uint16))
    images = load_images(tmp_path)
    assert images.shape == (1, 4, 4)
    assert images.pixels.unique().tolist() == [77]
    assert load_images(tmp_path, channels=3).shape == (3, 4, 4)
    red = np.zeros((4, 4, 4), np.uint8) + np.array([255, 0, 0, 128], np.uint8)
    save_picture(tmp_path / "a" / "alpha.png", red)
    Image.fromarray(red[..., :3]).convert("P").save(tmp_path / "a" / "palette.png")
    mixed = load_images(tmp_path)
    assert mixed.shape == (3, 4, 4)
    order = sorted(["alpha", "deep", "gray", "palette"])
    for name, colour in [("alpha", [255, 0, 0]), ("palette", [255, 0, 0]), ("gray", [77] * 3)]:
        assert mixed.pixels[order.index(name), :, 0, 0].tolist() == colour
    assert load_images(tmp_path, channels=1).shape == (1, 4, 4)


def test_first_frame_of_an_animation(tmp_path: Path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("white", "black")]
    (tmp_path / "a").mkdir()
    frames[0].save(tmp_path / "a" / "x.gif", save_all=True, append_images=frames[1:])
    assert load_images(tmp_path).pixels.float().mean() > 250


def test_sizes_differ(folder: Path):
    save_picture(folder / "dog" / "wide.png", np.zeros((4, 9, 3), np.uint8))
    error = refused("D005", folder)
    assert "4x6" in error.message
    assert "4x9" in error.message
    assert "wide.png" in error.message
    assert "size=" in error.hint
    images = load_images(folder, size=(8, 5))
    assert images.shape == (3, 8, 5)
    # A picture of one colour has that colour at every size.
    assert images.pixels[2].unique().tolist() == [40]
    refused("R003", folder, size=(0, 5))
    refused("R003", folder, channels=2)


def test_other_folders(tmp_path: Path, folder: Path):
    assert "set" in refused("D002", folder.parent).hint
    flat = tmp_path / "flat"
    save_picture(flat / "a.png", PIXELS[0, 0])
    assert "class" in refused("D002", flat).message
    (tmp_path / "empty").mkdir()
    refused("D002", tmp_path / "empty")


def test_unreadable_pictures_are_named(folder: Path):
    bad = folder / "dog" / "bad.png"
    whole = (folder / "dog" / "0.png").read_bytes()
    noise = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(noise, "PNG")
    for content in (b"", b"no picture", noise.getvalue()[:3000]):
        bad.write_bytes(content)
        assert "bad.png" in refused("D013", folder).message
    # Headers that claim far too many pixels, with their checksums: to goodnet, and to Pillow.
    for side, word in [(9000, "claims 9000x9000"), (60000, "bomb")]:
        ihdr = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        head = whole[:8] + struct.pack(">I", 13) + ihdr + struct.pack(">I", zipfile.crc32(ihdr))
        bad.write_bytes(head + whole[33:])
        assert word in refused("D013", folder).message
    bad.unlink()
    bad.symlink_to(folder / "nowhere.png")
    refused("D013", folder)


def test_pictures_for_predict(folder: Path, tmp_path: Path):
    paths = [folder / "owl" / "0.png", str(folder / "cat" / "1.png")]
    images = read_pictures(paths, (3, 8, 8))
    assert images.shape == (3, 8, 8)
    assert images.labels.tolist() == [-1, -1]
    assert images.pixels[:, 1, 4, 4].tolist() == [80, 1]
    assert read_pictures(paths[:1], (1, 4, 6)).shape == (1, 4, 6)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    for arguments, code in [
        (([tmp_path / "none.png"], (3, 8, 8)), "D001"),
        (([broken], (3, 8, 8)), "D013"),
        (([folder], (3, 8, 8)), "D013"),
        (([], (3, 8, 8)), "D004"),
        ((paths, (5, 8, 8)), "D005"),
    ]:
        with pytest.raises(GoodnetError) as caught:
            read_pictures(*arguments)
        assert caught.value.code == code


# --- checks -----------------------------------------------------------------------------------


def stand_in(shape: tuple[int, int, int], classes: int) -> Classifier:
    network = Network(torch.nn.Identity(), shape, classes, "test", "", lambda module, path: None)
    return Classifier(network, Preprocess("unit"), shape, classes)


def test_check_images():
    images = load_images(PIXELS, LABELS)
    fits = stand_in((3, 6, 5), 4)
    check_images(images)
    check_images(images, classifier=fits)
    one = load_images(PIXELS, np.zeros(12))
    check_images(one, classifier=fits, several_classes=False)
    nine = images.select(torch.arange(9))
    check_images(nine, minimum=9)
    cases: list[tuple[Images, dict[str, object], str, tuple[str, ...]]] = [
        (nine, {}, "D009", ("9", "10")),
        (images.select(torch.arange(0)), {}, "D009", ("0",)),
        (one, {}, "D008", ("12", "label 0")),
        (images, {"classifier": stand_in((3, 6, 5), 3)}, "D007", ("0 to 3", "0 to 2")),
        (images, {"classifier": stand_in((1, 28, 28), 4)}, "M010", ("3x6x5", "1x28x28")),
    ]
    for given, options, code, words in cases:
        with pytest.raises(GoodnetError) as caught:
            check_images(given, **options)
        assert caught.value.code == code
        assert all(word in caught.value.message for word in words), caught.value.message


# --- real data --------------------------------------------------------------------------------


def shared(*parts: str) -> Path:
    path = SHARED.joinpath("data", *parts)
    if not path.exists():
        pytest.skip(f"the real data are not in {SHARED}")
    return path


@pytest.mark.real
def test_real_csaw_files():
    clean = load_images(shared("csaw", "clean_validation.h5"))
    assert clean.shape == (3, 55, 47)
    assert len(clean) == 209
    assert clean.true_labels is None
    check_images(clean)
    poisoned = load_images(shared("csaw", "anonymous_1_poisoned.h5"))
    assert poisoned.labels.unique().tolist() == [0]
    assert poisoned.true_labels is not None
    assert int(poisoned.true_labels.min()) == -1


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("cifar10", (3, 32, 32), 10), ("mnist", (1, 28, 28), 10)]
)
def test_real_npz(name: str, shape: tuple[int, int, int], classes: int):
    images = load_images(shared(f"{name}.npz"))
    assert images.shape == shape
    assert len(images.labels.unique()) == classes
    assert (images.class_names is not None) == (name == "cifar10")


@pytest.mark.real
def test_real_faces(tmp_path: Path):
    with zipfile.ZipFile(shared("lfw_faces.zip")) as archive:
        names = sorted(archive.namelist())[:60]
        archive.extractall(tmp_path, names)
    images = load_images(tmp_path)
    assert images.shape == (3, 55, 47)
    assert len(images) == 60
    assert images.class_names is not None
    assert images.class_names[int(images.labels[0])] == "Aaron_Peirsol"
